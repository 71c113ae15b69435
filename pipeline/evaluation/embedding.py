"""A map of pictures: the first two principal components of their activations."""

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

MOST_PICTURES = 5000


def embedding_map(activations: npt.NDArray[np.floating], seed: int) -> tuple[npt.NDArray[np.float64], float]:
    """The first two principal components of `activations` (pictures, activations), each activation scaled to unit
    variance first, as (pictures, 2); and the share of the variance that they explain.

    The directions are found on at most 5,000 pictures. Pictures that are all alike lie at the origin.
    """
    if len(activations) < 2 or (activations == activations[0]).all():
        return np.zeros((len(activations), 2)), 0.0
    rows = np.random.default_rng(seed).permutation(len(activations))[:MOST_PICTURES]
    scaler = StandardScaler().fit(activations[rows].astype(np.float32))
    pca = PCA(2, svd_solver="covariance_eigh" if len(rows) > activations.shape[1] else "full", random_state=seed)
    pca.fit(scaler.transform(activations[rows].astype(np.float32)))
    chunks = (activations[start : start + MOST_PICTURES] for start in range(0, len(activations), MOST_PICTURES))
    positions = np.concatenate([pca.transform(scaler.transform(chunk.astype(np.float32))) for chunk in chunks])
    return positions.astype(np.float64), float(pca.explained_variance_ratio_.sum())
