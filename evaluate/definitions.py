"""What each figure means. Every ``results.json`` holds these texts, and every report ends with them."""

DEFINITIONS = {
    "fvu": (
        "Fraction of variance unexplained: E‖x − x̂‖² / (E‖x‖² − ‖E x‖²), over the measured rows, in "
        "float64. 0 is perfect, 1 is no better than the mean row. Given for normalized rows (the space the "
        "SAE was trained in) and for raw activations (normalization inverted row by row)."
    ),
    "explained_variance": "1 − FVU.",
    "mse": "Mean squared error per coordinate: E‖x − x̂‖² / D, in the space that is named.",
    "cosine": "Mean over rows of the cosine between x and x̂; a zero reconstruction counts as 0.",
    "l0": "Mean number of latents that are not 0 on a row; its quantiles are over rows.",
    "l1": "Mean over rows of the sum of |activation|, in the units of the normalized space.",
    "density": "Share of the measured rows on which a latent is active: not 0 (some codes can be negative).",
    "alive": (
        "Latents that are active on at least one measured row; the others are dead. Depends on how many "
        "rows were measured: with few rows, rare latents look dead."
    ),
    "dense_share": "Share of all latents that fire on more than 10 % of the rows.",
    "features_per_token": "How many rows have how many active latents.",
    "scored_tokens": (
        "Losses are taken at the positions that hold a measured row and are followed by a token of the same "
        "document. Reconstruction and ablation replace the hook's activation at all measured rows of the "
        "sequence, and nowhere else."
    ),
    "ce": (
        "Mean next-token cross-entropy in nats: clean model, SAE spliced in, activation set to zero, and "
        "activation set to its mean over the training rows."
    ),
    "ce_recovered": (
        "(CE_zero − CE_sae) / (CE_zero − CE_clean), a ratio of means over all scored tokens. 1 is a "
        "reconstruction that costs nothing, 0 is as bad as zero ablation. The standard error is a jackknife "
        "over sequences."
    ),
    "kl": (
        "Mean over scored tokens of KL(clean next-token distribution ‖ distribution with the replacement), "
        "in nats."
    ),
    "kl_score": "(KL_zero − KL_sae) / KL_zero.",
    "activation_mismatch": (
        "Median relative distance between the activations the model gave during the evaluation and those in "
        "the cache: the check that model, hook and cache belong together."
    ),
    "latents": (
        "Shown latents are drawn with a fixed seed, one from each of equally large groups of alive latents "
        "ordered by density, beside the densest. Contexts are the largest activations over the measured "
        "rows, at most one per document and neighbourhood."
    ),
}
