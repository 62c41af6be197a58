"""What a reader of a certificate must know, in sentences."""

from lodrop_nn.certify.config import N_PRIORS, CertifyConfig


def notes(config: CertifyConfig, n_pool: int) -> tuple[str, ...]:
    """Notes of a record.

    Args:
        config: The certificate.
        n_pool: Rows of the data set.
    """
    n_population = n_pool - config.n_reference
    share = config.n_train / n_population
    prior = (
        f"at an adapter fine-tuned on the {config.n_reference} reference rows for "
        f"{config.prior_epochs} epochs"
        if config.prior_epochs
        else "at the initial values of the seed"
    )
    return (
        f"Certified is the mean loss over the {n_population} rows of the pool that are not "
        f"reference rows; the sample is {share:.0%} of them. The rows marked `+unseen` are about "
        "the others alone.",
        "Posterior and prior draw the same masks of LoRA Dropout and the same normal noise on the "
        f"factors B and on the head; A is frozen. The prior is centered {prior}.",
        f"The prior may be any of {N_PRIORS} on a grid (dropout rate, rank, blocks, modules, "
        "what the head reads, scale of the noise on the factors and on the head), all of them paid "
        "for: the choice may have looked at any rows. The base model, the smoothing, the seed, the "
        "reference rows and what is done with them are not on the grid.",
        "The draws behind the training risk are paid for as made after all choices: the best of T "
        "certificates of one sample holds with probability 1 - delta - (T - 1) delta_draws, its "
        "`+unseen` row with 1 - delta - 2 (T - 1) delta_draws.",
        "Each bound holds with probability 1 - delta by itself, not all of them together.",
        "The hold-out bounds need that no choice has looked at the held-out rows.",
        f"A hold-out bound takes {config.n_test} labelled rows that training may not see; the "
        f"PAC-Bayes bounds take none beside the {config.n_train} that are trained on"
        + (
            f", and the {config.n_reference} labelled rows of the prior."
            if config.prior_epochs
            else "."
        ),
        "Draws come from a pseudo-random generator and are computed in single precision.",
    )
