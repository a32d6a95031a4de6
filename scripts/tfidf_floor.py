"""The floor under every student of a classification task: TF-IDF and logistic regression, scikit-learn's defaults.

    python scripts/tfidf_floor.py data/sst2/train.tsv data/sst2/dev.tsv

TSV files with a header that has `sentence` and `label`. Prints the accuracy on the second file.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


def main() -> None:
    """Fit, score, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    arguments = parser.parse_args()
    (texts, labels), (held_out, truth) = read(arguments.train), read(arguments.test)
    model = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000)).fit(texts, labels)
    print(f"accuracy {model.score(held_out, truth):.4f} on {len(truth)} rows")


def read(path: Path) -> tuple[list[str], list[str]]:
    """Texts and labels of a TSV file."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [row["sentence"] for row in rows], [row["label"] for row in rows]


if __name__ == "__main__":
    main()
