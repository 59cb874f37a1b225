"""The claims that rows which are harder to reconstruct get more latents. ``adaptive.py`` measures them."""

from collections.abc import Sequence

from claim import Claim

ADAPTIVE: Sequence[Claim] = (
    Claim(
        where="section 7.2, appendix D",
        text="Mutual Choice gives the fifth of the rows that is hardest to reconstruct more latents than the "
        "easiest fifth",
        figure="latents of a row",
        lower="mutual_easiest",
        higher="mutual_hardest",
    ),
    Claim(
        where="section 7.2",
        text="... and so does Feature Choice with m_i by Zipf's law",
        figure="latents of a row",
        lower="zipf_after_mutual_easiest",
        higher="zipf_after_mutual_hardest",
    ),
    Claim(
        where="section 7.2",
        text="... and with uniform m_i",
        figure="latents of a row",
        lower="uniform_after_mutual_easiest",
        higher="uniform_after_mutual_hardest",
    ),
    Claim(
        where="appendix D, figure 7",
        text="The number of latents of a row has a long upper tail in Mutual Choice: the 99th percentile is "
        "farther from the median than the 1st is",
        figure="latents of a row",
        lower="mutual_below_median",
        higher="mutual_above_median",
    ),
    Claim(
        where="section 7.2 (ours)",
        ours=True,
        text="Mutual Choice reconstructs better with its own number of latents for each row than with the "
        "same number for every row",
        figure="fvu of the rows",
        lower="mutual_by_threshold",
        higher="mutual_same_for_every_row",
    ),
    Claim(
        where="section 7.2 (ours)",
        ours=True,
        text="... and so does Feature Choice with m_i by Zipf's law",
        figure="fvu of the rows",
        lower="zipf_after_mutual_by_threshold",
        higher="zipf_after_mutual_same_for_every_row",
    ),
)
