"""From a job file to a cluster: who may enter, what is packed, Ray's Jobs API, manifests of other schedulers."""
