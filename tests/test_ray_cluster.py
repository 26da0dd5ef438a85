import os

import ray

from tests.leftovers import alive_in_ray


class Idle:
    def answer(self):
        return 42


def test_the_cluster_is_this_modules_own_and_open(ray_cluster, private_root):
    temporary = ray._private.worker.global_worker.node.get_session_dir_path()

    assert temporary.startswith(str(private_root))
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert ray.cluster_resources()["CPU"] == 8


def test_an_actor_that_was_not_stopped_is_seen(ray_cluster):
    actor = ray.remote(Idle).remote()
    assert ray.get(actor.answer.remote()) == 42

    assert [line.split()[0] for line in alive_in_ray()] == ["actor"]
    ray.kill(actor)


def test_a_placement_group_that_was_not_removed_is_seen(ray_cluster):
    group = ray.util.placement_group([{"CPU": 1}])
    ray.get(group.ready())

    assert any(line.startswith("placement group") for line in alive_in_ray())
    ray.util.remove_placement_group(group)
