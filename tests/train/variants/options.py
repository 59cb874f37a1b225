"""Tests of further settings of a kind, for which another test class already does whole runs."""


class WithoutRuns:
    """Leaves out the training runs of the contract class that is inherited after it."""

    test_same_seed_same_bytes_and_resume_is_exact = None
    test_another_seed_gives_another_sae = None
    test_training_lowers_the_heldout_error = None
    test_more_active_latents_than_there_are_is_refused = None
