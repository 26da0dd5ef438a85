"""The main job: a small CNN on scikit-learn's 1,797 real images of digits, on two ranks."""
