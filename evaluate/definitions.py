"""What each figure means. Every ``results.json`` holds these texts, and every report ends with them."""

DEFINITIONS = {
    "fvu": (
        "Fraction of variance unexplained: E‖x − x̂‖² / (E‖x‖² − ‖E x‖²), over the measured rows, in "
        "float64. 0 is perfect, 1 is no better than the mean row. Given for normalized rows (the space the "
        "SAE was trained in) and for raw activations (normalization inverted row by row)."
    ),
    "explained_variance": "1 − FVU.",
    "intervals": (
        "95 % confidence intervals: percentiles of 1,000 seeded bootstrap draws of whole documents (of "
        "groups of documents if there are more than 1,024), because rows of one document depend on each "
        "other. None are given for fewer than 10 documents. They say how the figure varies with the text, "
        "not with the seed of the training."
    ),
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
    "zipf": (
        "Least-squares fit of density(rank i) = scale / (i + beta)^alpha to the densities of the alive "
        "latents, once of logarithms and once of densities, each with R² in its own space."
    ),
    "dying": (
        "Alive latents in the last quarter of the ranks whose density, and that of every latent of a higher "
        "rank, is below 60 % of what the fit of logarithms expects (Mutual Choice & Feature Choice, "
        "Definition 3.1, which counts dead latents too; they are counted apart here)."
    ),
    "progressive": (
        "FVU of normalized rows when at most k' codes of each row are kept, those of the largest "
        "|activation| times decoder norm; the last k' keeps all."
    ),
    "collapse": (
        "Statistics of the neural feature matrix Ŵ Ŵᵀ, where Ŵ has the decoder directions as unit rows: its "
        "Frobenius norm; the mean square cosine of two latents, 1 / D for random directions; F² / its "
        "squared norm, the number of dimensions that the directions fill evenly; and the cosine of a latent "
        "with its nearest other, over a seeded sample of latents."
    ),
    "mmcs": (
        "Mean max cosine similarity of A in B: the mean over a seeded sample of A's latents of the largest "
        "cosine of their decoder direction with one of B's. It is not symmetric. Matches are one to one, of "
        "cosine 0.7 or more, chosen so that the sum of cosines is largest."
    ),
    "rule": (
        "How latents were selected: threshold, row by row as at inference; or batch, by the rule of "
        "training on full batches of shuffled rows (rows that fill no batch are left out). Probing and "
        "absorption always use the rule of inference."
    ),
    "probing": (
        "Each class is a binary task, half of whose texts are of the class. A text is the mean of its "
        "activations over its tokens. The k latents whose means differ most between the halves of the "
        "training texts are the inputs of a logistic regression (L2, C = 1); its accuracy on test texts is "
        "averaged over the classes. A code is multiplied by the norm of its decoder row, and by sqrt(D) "
        "where rows have norm 1, because the penalty depends on its size. Beside it: a probe of all latents, "
        "of the model's k best activations, and of all its activations."
    ),
    "absorption": (
        "First letters of words, by SAEBench's definition: on test words whose letter a probe of the "
        "activations finds, the share of the letter that up to 3 other latents along the probe (cosine ≥ "
        "0.1) hold instead of the letter's main latents, if they hold 40 % or more of the projection; full "
        "absorption: the main latents are silent, and one latent (cosine ≥ 0.025) holds 40 % or more. Means "
        "over letters that the probe finds with F1 above 0.6. Probes are trained as SAEBench trains them, 50 "
        "passes of Adam. It is all measured in the SAE's normalized space."
    ),
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
        "over documents."
    ),
    "kl": (
        "Mean over scored tokens of KL(clean next-token distribution ‖ distribution with the replacement), "
        "in nats."
    ),
    "kl_score": "(KL_zero − KL_sae) / KL_zero.",
    "top1": (
        "Share of the scored tokens on which the most likely next token is that of the clean model, with "
        "the SAE spliced in and with the ablations."
    ),
    "activation_mismatch": (
        "Median relative distance between the activations the model gave during the evaluation and those in "
        "the cache: the check that model, hook and cache belong together."
    ),
    "latents": (
        "Shown latents are drawn with a fixed seed, one from each of equally large groups of alive latents "
        "ordered by density, beside the densest. Contexts are where the latent is most active on the "
        "measured rows, at most one of each document (of each stretch of text if there are few documents)."
    ),
}

JUDGE_DEFINITIONS = {  # results that "saecache interpret" has added to hold these too
    "judge": (
        "A chat model, the judge, is shown held-out windows in which a latent is active, its tokens "
        "highlighted, and explains the latent in a sentence. Scores are taken on windows of other documents: "
        "half of them active, spread over the deciles of activation, half of them inactive on every measured "
        "token. Balanced accuracy is the mean of the share of active windows that the judge finds and the "
        "share of inactive ones that it does not take for active; 0.5 is chance. Detection asks in which "
        "windows the latent is active, fuzzing asks where the highlighted tokens are the right ones. Windows "
        "whose answer could not be read count as unanswered and in nothing else. Intervals are over "
        "documents for one latent, over latents for a mean (Paulo et al. 2025)."
    ),
    "calibration": (
        "The active windows of each latent, ordered by their largest activation, fall into buckets of equal "
        "size; each is explained and scored (detection) on its own. The correlation is Pearson's, over the "
        "points latent × bucket, of the score with the middle of the bucket's percentiles; its interval "
        "draws latents (Probabilistic TopK, Figure 5 and Table 2)."
    ),
    "recovered": (
        "Synthetic caches only: the share of the known features that have a latent of their own, whose "
        "decoder row has a |cosine| of 0.7 or more with the feature. Features and latents are matched one to "
        "one, so that the sum of all |cosines| is largest. The mean |cosine| is over all features; it is 0 "
        "where no latent is left (Sampled-SAE, bucket recovery rate)."
    ),
    "fidelity": (
        "Synthetic caches only: Pearson's correlation of the frequencies of the recovered features with the "
        "densities of their latents, and that of the logarithms of both (Sampled-SAE, activation fidelity)."
    ),
    "uniqueness": (
        "Similarity of two latents of two SAEs: the mean of the cosine of their decoder directions and of "
        "that of the embeddings of their explanations. Every judged latent of A is given its most similar "
        "judged latent of B; a low similarity means that B has no such latent among those that were judged "
        "(Sampled-SAE, unique features)."
    ),
}
