"""Tell from a BIDS file's name whether it is a mask of lesions, and if not, why not."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from glob import escape

from wmlsearch.data.sources.bids_names import BidsFile
from wmlsearch.data.sources.choices import Selection, option_text, same_value
from wmlsearch.data.sources.lesion_words import denies_lesion, is_lesion_word

_LESION_LABEL = re.compile(r"(?i)l|les")  # BIDS's own abbreviation of lesion, and the usual one
_TISSUE_LABEL = re.compile(r"(?i)b|bg|bs|cbm|nb|st")  # BIDS's own of bone, background, brainstem, cerebellum, others
_NEUTRAL = re.compile(  # says who made a mask or how, not what it shows
    r"(?i)(rater|annotator|reader|observer|expert|radiologist|neurologist|manual|consensus|majority|staple|gt|ground-?truth"
    r"|gold|gold-?standard|reference|ref|truth|final|edited|corrected|reviewed|binary|bin|clean|flair|t2-?flair|native|orig"
    r"|v|version|seg|segmentation|mask|roi|label|labels|annotation)[a-z]?[0-9]*"
)
_OTHER = re.compile(  # names parts of a head, or programs that find them
    r"(?i)brain|head|skull|scalp|(^|[^a-z])bet([^a-z]|$)|hd-?bet|strip|robex|deface|(^|[^a-z])(s?c?gm|s?c?wm|csf|nawm)(mask|seg)?([^a-z]|$)"
    r"|tissue|cort|ribbon|aparc|aseg|thalam|hippo|ventric|cerebell|(^|[^a-z])(eye|face)|tumou?r|stroke|infarct|bleed|pvs|vessel"
    r"|deep-?bet|icv|intra-?cran|(^|[^a-z])tiv|fore-?ground|back-?ground|body|bias|atlas|sienax?|parcel|(^|[^a-z])tract|robust-?fov|fixel"
    r"|(^|[^a-z])valid([^a-z]|$)"
)
_OTHER_FOLDER = re.compile(
    r"(?i)registration|(^|[^a-z])(n4|dwi|dmri|dti|qsi|asl|bold|fmri)|prep|free-?surfer|fast-?surfer|synth-?seg|samseg|mriqc|cat12|(^|[^a-z])(fsl|ants|spm[0-9]*|anat)([^a-z]|$)"
)
_MODALITY = re.compile(  # another image than the FLAIR, on which a mask was drawn
    r"(?i)(T1|T2|PD|T2star|MP2?RAGE|inplaneT[12]|UNIT1|T1rho)w?|PDT2|T[12]star|bold|sbref|cbv|[ed]?dwi|dti|adc|fa|md|asl|perf"
    r"|m0scan|pet|swi|qsm|mtr|mt[rs]at|epi|phase[12]?|magnitude[12]?|mese|megre|ct|angio|T[12]map"
)
_OTHER_DATATYPES = ("func", "dwi", "perf", "fmap", "pet", "meg", "eeg", "ieeg", "mrs", "beh")  # folders of BIDS
_OTHER_ENTITIES = ("task", "atlas", "tissue")  # no mask of lesions has them
_MASK_SUFFIX = re.compile(r"(?i).*(mask|seg|roi|rois|labels?|annotations?)|manual|consensus|gt")
_IMAGE_KEYS = ("acq", "run", "rec", "ce", "echo", "inv", "part", "chunk", "dir", "mt", "flip", "task")
_GRID_KEYS = ("space", "res")
_NATIVE = ("", "flair", "t2flair", "orig", "native", "individual", "subject", "scanner")  # `space-` of the image itself
# Who names a file by its file name wants it whatever that says, but not in another grid or of another run.
_NAMED_BY_NAME = frozenset(
    {"name", "desc", "seg", "suffix", "label", "derivative", "folder", "atlas", "tissue", "task"}
)
FLAIR = "flair"  # case aside
NAMED, PLAIN, OTHER = 2, 1, 0  # how far a name says that a mask shows lesions


@dataclass(frozen=True)
class Reason:
    """Why a mask is not taken, and the property by which the user can ask for it all the same."""

    key: str
    text: str
    is_other: bool = False  # it shows something else; else it only does not say that it shows lesions


@dataclass(frozen=True)
class Candidate:
    """A mask, or what could be one."""

    file: BidsFile
    level: int  # NAMED: its name, or its folder's, says lesion; PLAIN: just a mask; OTHER
    reasons: tuple[Reason, ...] = ()  # why it is not a mask of lesions; empty unless OTHER

    def advice(self, reasons: Sequence[Reason]) -> str:
        """Return the reasons why the file is not taken, and the options that take it all the same."""
        values = {**self.file.properties, "name": f"*{escape(self.file.tail)}"}
        options = sorted({option_text("--mask-select", reason.key, values.get(reason.key, "")) for reason in reasons})
        effect = "takes it"
        if any(reason.is_other for reason in reasons):
            effect += ", and such masks of other patients instead of their lesions"
        return f"{', '.join(reason.text for reason in reasons)}; {' '.join(options)} {effect}"


def as_candidate(file: BidsFile, image: BidsFile | None = None) -> Candidate | None:
    """Return a file as a candidate for a mask; None for what is not like a mask at all.

    Args:
        file: File that may be a mask.
        image: The image whose mask it may be; None where that is not known yet, and then it is a FLAIR.
    """
    entities = {key.lower(): value for key, value in file.entities.items()}
    label, desc, seg = (entities.get(key, "") for key in ("label", "desc", "seg"))
    odd = [key for key in file.entities if is_lesion_word(key)]  # such as lesion-manual
    named = [text for text in (desc, seg, file.suffix, *file.words, *odd) if is_lesion_word(text)]
    labelled = is_lesion_word(label) or bool(_LESION_LABEL.fullmatch(label))
    folder, _ = _folder_level(file)
    is_mask_suffix = _MASK_SUFFIX.fullmatch(file.suffix) or is_lesion_word(file.suffix)
    if not is_mask_suffix and (file.suffix or not (label or seg or odd or named)):
        return None
    if label:
        reasons = [] if labelled else _not_lesions("label", label, folder)
    elif named:
        reasons = []
    else:
        reasons = _unnamed_reasons(file, desc, seg, image)
    if "hemi" in entities:
        reasons.append(Reason("hemi", f"hemi-{entities['hemi']} holds one half of the brain", is_other=True))
    if file.suffix.lower() == "probseg":
        reasons.append(Reason("suffix", "it holds probabilities"))
    if reasons:
        return Candidate(file, OTHER, tuple(reasons))
    return Candidate(file, NAMED if labelled or named or folder == NAMED else PLAIN)


def as_mask_named_like_image(file: BidsFile) -> Candidate | None:
    """Return a file named like an image that lies in a folder of lesions, and so may be a mask; else None."""
    level, key = _folder_level(file)
    if level != NAMED:
        return None
    return Candidate(file, OTHER, (Reason(key, "it is named like an image, but lies in a folder of lesions"),))


def _folder_level(file: BidsFile) -> tuple[int, str]:
    """Return how far a file's folders say that masks show lesions, and the key of the one that says so.

    It is the innermost folder that says anything. Names of programs count only where no folder names lesions.
    """
    folders = (("folder", file.folder), ("derivative", file.derivative))
    for key, names in folders:
        for name in reversed(names.split("/")):
            if is_lesion_word(name):
                return NAMED, key
            if _is_other(name):
                return OTHER, key
    return next(((OTHER, key) for key, names in folders if _OTHER_FOLDER.search(names)), (PLAIN, ""))


def _unnamed_reasons(file: BidsFile, desc: str, seg: str, image: BidsFile | None) -> list[Reason]:
    """Return why a mask whose name says nothing of lesions is not taken for one."""
    folder, folder_key = _folder_level(file)
    reasons = []
    for key, value in (("desc", desc), ("seg", seg)):
        if value and not _NEUTRAL.fullmatch(value):
            reasons += _not_lesions(key, value, folder)
    reasons += [
        Reason(key, f"{key}-{value} names something else than lesions", is_other=True)
        for key, value in file.entities.items()
        if key.lower() in _OTHER_ENTITIES
    ]
    datatype = file.path.parent.name.lower()
    if images := _other_images(file, image):
        text = f"{images[0]!r} in its name is another image than the {_image_kind(image)}"
        reasons.append(Reason("name", text, is_other=True))
    elif datatype in _OTHER_DATATYPES and not (image and image.path.parent.name.lower() == datatype):
        text = f"it is in {datatype}/, so it belongs to another image than the {_image_kind(image)}"
        reasons.append(Reason("name", text, is_other=True))
    if other := [word for word in file.words if _is_other(word)]:
        reasons.append(Reason("name", f"{other[0]!r} in its name means something other than lesions", is_other=True))
    if file.suffix.lower() != "mask":
        if _OTHER.search(file.suffix):
            reasons.append(Reason("suffix", f"_{file.suffix} names something else than lesions", is_other=True))
        elif folder != NAMED and (file.suffix or not reasons):
            reasons.append(Reason("suffix", f"_{file.suffix or 'seg'} does not say what it shows"))
    if not reasons and folder == OTHER:
        place = f"derivatives/{file.derivative}" if folder_key == "derivative" else f"{file.folder}/"
        reasons.append(Reason(folder_key, f"the masks of {place} show something else", is_other=True))
    return reasons


def _is_other(text: str) -> bool:
    """Whether a word names something else than lesions, rather than nothing that is known."""
    return bool(_OTHER.search(text)) or denies_lesion(text)


def _not_lesions(key: str, value: str, folder: int) -> list[Reason]:
    """Return the reason for a value that does not say lesion. In a folder of lesions it may be any unknown word."""
    if _is_other(value) or (key == "label" and _TISSUE_LABEL.fullmatch(value)):
        return [Reason(key, f"{key}-{value} names something else than lesions", is_other=True)]
    if folder == NAMED:
        return []
    return [Reason(key, f"{key}-{value} is an unknown word, which may stand for lesions or not")]


def _other_images(file: BidsFile, image: BidsFile | None) -> list[str]:
    """Return the words of a mask's name that are another image. T2_FLAIR and T2w_FLAIR are a FLAIR."""
    image_words = {word.casefold() for word in (*image.words, image.suffix)} if image else set()
    if any(FLAIR in word.lower() for word in file.words):
        image_words |= {"t2", "t2w"}
    return [word for word in file.words if _MODALITY.fullmatch(word) and word.casefold() not in image_words]


def _image_kind(image: BidsFile | None) -> str:
    return image.suffix if image and image.suffix else "FLAIR"


def image_reasons(mask: BidsFile, image: BidsFile) -> list[Reason]:
    """Return why a mask does not belong to an image: it is that of another image, or lies in another grid."""
    reasons = []
    for key in _IMAGE_KEYS:
        of_mask, of_image = mask.entities.get(key, ""), image.entities.get(key, "")
        if of_mask and of_image and not same_value(of_mask, of_image):
            reasons.append(Reason(key, f"it belongs to the image with {key}-{of_mask}"))
    for key in _GRID_KEYS:
        of_mask, of_image = mask.entities.get(key, ""), image.entities.get(key, "")
        if key == "space":
            of_mask, of_image = ("" if value.lower() in _NATIVE else value for value in (of_mask, of_image))
        if reasons and reasons[-1].key in _GRID_KEYS:
            break  # a grid of another space has another resolution, too
        if of_mask and not same_value(of_mask, of_image):
            reasons.append(Reason(key, f"it lies in the grid of {key}-{of_mask}, the image does not"))
        elif of_image and not of_mask and key == "space":
            reasons.append(Reason(key, f"it does not lie in the image's grid, space-{of_image}"))
    return reasons


def fits_exactly(mask: BidsFile, image: BidsFile) -> bool:
    """Whether a mask has just those of an image's entities that tell images of a scan apart."""
    return all(same_value(mask.entities.get(key, ""), image.entities.get(key, "")) for key in _IMAGE_KEYS)


@dataclass(frozen=True)
class LeftOut:
    """A candidate that is not taken, and why."""

    file: BidsFile
    reason: str

    def __str__(self) -> str:
        return f"{self.file.name} ({self.reason})"


@dataclass(frozen=True)
class MaskChoice:
    """The masks that an image may have, one if all is well, and the other candidates."""

    masks: tuple[Candidate, ...]
    left_out: tuple[LeftOut, ...]
    is_named_by_user: bool = False  # the user has named the masks' derivative or file name


def choose_masks(
    candidates: Sequence[Candidate], image: BidsFile, selection: Selection, take_plain: bool
) -> MaskChoice:
    """Return the masks that an image may have.

    Args:
        candidates: The masks of the image's scan.
        image: The image.
        selection: The user's selection, which may also select masks of something else.
        take_plain: Whether masks count whose names do not say what they show.
    """
    left_out: list[LeftOut] = []
    possible: list[tuple[Candidate, tuple[int, ...]]] = []
    for one in (as_candidate(candidate.file, image) or candidate for candidate in candidates):
        match = selection.match(one.file.properties)
        if match is None:
            more = selection.more(one.file.properties)
            left_out.append(LeftOut(one.file, f"not {selection.arguments()}; {more} as well takes it"))
            continue
        reasons = [*one.reasons, *image_reasons(one.file, image)]
        if one.level == PLAIN and not take_plain and not match.explicit:
            key = _key_of_its_own(one, candidates)
            reasons.append(Reason(key, "its name does not say that it shows lesions, as those of other masks do"))
        explicit = match.explicit | (_NAMED_BY_NAME if "name" in match.explicit else frozenset())
        if missing := [reason for reason in reasons if reason.key not in explicit]:
            left_out.append(LeftOut(one.file, one.advice(missing)))
        else:
            possible.append((one, match.rank))
    best = _best(possible, image)
    left_out += [LeftOut(one.file, "another mask fits better") for one, _ in possible if one not in best]
    named = bool(selection.wanted.keys() & {"name", "derivative", "folder"})
    return MaskChoice(tuple(best), tuple(left_out), named)


def _key_of_its_own(plain: Candidate, candidates: Sequence[Candidate]) -> str:
    """Return the property by which a mask can be chosen rather than those that say lesion: its name, if it will do."""
    named = [one.file for one in candidates if one.level == NAMED]
    if any(file.path.name.endswith(plain.file.tail) for file in named):
        for key in ("derivative", "folder"):
            if all(file.properties[key] != plain.file.properties[key] for file in named):
                return key
    return "name"


def _best(possible: Sequence[tuple[Candidate, tuple[int, ...]]], image: BidsFile) -> list[Candidate]:
    """Return the masks that fit the selection best, then those that say lesion, then those of just this image."""
    first = min((rank for _, rank in possible), default=())
    best = [one for one, rank in possible if rank == first]
    best = [one for one in best if one.level == NAMED] or best
    return [one for one in best if fits_exactly(one.file, image)] or best
