"""The soak: trainings and flows that are disturbed at random, each compared with an undisturbed one to the last bit."""
