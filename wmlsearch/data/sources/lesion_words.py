"""Words by which file names and descriptions say that something is a lesion of white matter."""

from __future__ import annotations

import re

_LESION = re.compile(r"(?i)lesion|wmh|wml|white-?matter-?hyperintens|flair-?hyperintens")
_NO_LESION = re.compile(
    r"(?i)(^|[^a-z])(non?|not|without|peri|exclu?d?e?s?|minus|normal)[-+_ ]?(lesion|wmh|wml)"
    r"|(lesion|wmh|wml)s?[-+_ ]?(fill|inpaint|free|excl|prob|less|count|removed|edge|rim|border|ring|dilat|distance)"
    r"|(^|[^a-z])(new|gad|gado?|gd|gd\+|enhancing|enhanced|active|cortical|spinal|spinal-?cord|cord)[-_+ ]?lesion"
    r"|(stroke|infarct|isch(a?)emic|tumou?r|metasta[a-z]*|bleed|ha?emorrhag[a-z]*|trauma[a-z]*)[-+_ ]?lesion"
)


def is_lesion_word(text: str) -> bool:
    """Whether a word names lesions: not for `nonlesion`, `lesionfilled` and the like."""
    return bool(_LESION.search(text)) and not denies_lesion(text)


def denies_lesion(text: str) -> bool:
    """Whether a word has lesions in it, but names something else."""
    return bool(_NO_LESION.search(text))
