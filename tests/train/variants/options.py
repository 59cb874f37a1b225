"""For settings of a kind that another test class already takes through whole runs."""


class WithoutRuns:
    """Comes before a contract class: its definition, codes and files are tested, training runs are not."""

    test_same_seed_same_bytes_and_resume_is_exact = None
    test_another_seed_gives_another_sae = None
    test_training_lowers_the_heldout_error = None
    test_more_active_latents_than_there_are_is_refused = None
