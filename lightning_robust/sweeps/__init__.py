"""Many runs: the file that describes them, the trials, Ray Tune."""
