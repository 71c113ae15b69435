"""The recipe's sections on pictures and network: what is trained on, how it is varied, which body and head."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from pipeline.recipe.fields import PICTURE_ENDINGS, HeldOutShare, Section, timm_name


class Data(Section):
    """Which pictures, and how they are split where they do not come split."""

    source: str = Field(
        "elpv",
        min_length=1,
        description="elpv (the packaged solar cells), a folder of class folders, a folder with train/, "
        "valid/ or val/, and maybe test/, or a table (.csv, .tsv, .parquet) with the columns path and label, or a "
        "probability for each class instead, and maybe split, group and weight; its pictures may be at addresses "
        "(https://, s3://, …), and so may the table",
    )
    soft_labels: bool = Field(
        False,
        description="true or false: train on the probabilities of a defect that the packaged solar cells have (0, 1/3, "
        "2/3, 1) instead of the likelier class; a table with a column for each class has soft labels by itself",
    )
    uncertain_weight: float = Field(
        1.0,
        gt=0,
        le=1,
        description="a number above 0, up to 1 (off): how much a picture counts in training whose likeliest class has "
        "a probability below 0.9",
    )
    corrections: str = Field(
        "",
        description="empty, or a corrections.csv that report.html of evaluate made: pictures of a hash get its label, "
        "are dropped, or are not doubted again",
    )
    split_seed: Literal["auto"] | int = Field(
        "auto", description="auto (the recipe's seed) or a whole number: which pictures are held out"
    )
    valid_fraction: HeldOutShare = 0.15
    test_fraction: HeldOutShare = 0.25
    fit: Literal["crop", "pad", "squish"] = Field(
        "crop", description="crop, pad or squish: how a picture is made square"
    )
    range: Literal["auto", "container"] | Annotated[list[float], Field(min_length=2, max_length=2)] = Field(
        "auto",
        description="auto (deep pictures, of 16 or 32 bits or floats, are scaled to 8 bits from the range of the "
        "training pictures), container (from all that their files can hold), or two numbers such as [0, 4095] that "
        "become black and white",
    )
    extensions: list[str] = Field(
        PICTURE_ENDINGS,
        description="a list of file endings such as [.jpg, .png]; other files of a folder are set aside",
    )
    max_bad: float = Field(
        0.01,
        ge=0,
        le=1,
        description="a share from 0 to 1: with more pictures than that that cannot be used the run stops",
    )
    duplicates: Literal["move", "stop"] = Field(
        "move",
        description="move (copies of a picture that come in two splits all go to the first of train, valid and test, "
        "and what lies in two classes is set aside) or stop (the run does)",
    )
    decoder: Literal["auto", "pillow", "nvjpeg"] = Field(
        "auto",
        description="auto (nvjpeg where a GPU can), pillow, or nvjpeg (JPEGs by the GPU, whose pixels differ a little)",
    )
    max_store_gib: float = Field(
        20.0,
        ge=0,
        description="a number of GiB from 0 up: pictures whose decoded pixels would take more disk are decoded anew "
        "whenever they are needed, and precompute stops where activations in front of the late group would",
    )
    max_logged_gib: float = Field(
        2.0,
        ge=0,
        description="a number of GiB from 0 up: decoded pixels that take no more are kept among the files of "
        "precompute's run, for machines that have not the pictures",
    )
    max_download_gib: float = Field(
        20.0,
        ge=0,
        description="a number of GiB from 0 up: pictures that a table names by their addresses are fetched into the "
        "cache, and the run stops where they take more",
    )
    recheck_hours: float = Field(
        24.0,
        ge=0,
        description="a number of hours from 0 up: servers of fetched pictures that were last asked for longer ago are "
        "asked at the start whether these have changed",
    )


class Model(Section):
    """The body: a timm backbone without its classifier."""

    backbone: Annotated[str, AfterValidator(timm_name)] = Field(
        "tf_efficientnet_lite0",
        min_length=1,
        description="the name of a timm backbone, or of one on the hub, such as hf-hub:timm/resnet18.a1_in1k",
    )
    weights: str = Field(
        "auto",
        min_length=1,
        description="auto (from an installed package, else from timm's hub), hub, random, or the path of a "
        ".safetensors or .pth file",
    )


class Head(Section):
    """The new classifier on top of the body."""

    hidden: int = Field(512, ge=0, le=8192, description="a whole number from 0 (a linear head) up: its hidden layer")
    dropout: float = Field(0.5, ge=0, lt=1, description="a number from 0 to below 1, halved before the hidden layer")


class Augment(Section):
    """How training pictures are varied, each picture in its own way; validation pictures never are."""

    flip: Literal["none", "sideways", "all"] = Field(
        "sideways",
        description="none, sideways (left and right may be swapped), or all (the eight flips and quarter turns): "
        "choose what keeps your pictures real",
    )
    rotate_degrees: float = Field(10.0, ge=0, le=180, description="degrees from 0 to 180, either way")
    zoom: float = Field(1.1, ge=1, le=4, description="a number from 1 (none) to 4: the largest magnification")
    crop: float = Field(
        0.9, gt=0.1, le=1, description="a share from 0.1 to 1 (none): the smallest part of a side that a crop keeps"
    )
    lighting: float = Field(
        0.2, ge=0, lt=1, description="a number from 0 (none) to below 1: how far brightness and contrast vary"
    )
    strength: float = Field(
        1.0, ge=0, le=3, description="a number from 0 (none) to 3: rotation, zoom, crop and lighting, times this"
    )
    probability: float = Field(
        0.75, ge=0, le=1, description="a number from 0 to 1: how often a warp, or lighting, acts"
    )
    mixup: float = Field(
        0.0,
        ge=0,
        le=10,
        description="a number from 0 (off) to 10: alpha of the share in which pictures are blended; train/loss "
        "is then the cross-entropy with both classes",
    )
    cutmix: float = Field(
        0.0,
        ge=0,
        le=10,
        description="a number from 0 (off) to 10: alpha of the share of a box cut from another picture",
    )
    perspective: float = Field(
        0.0,
        ge=0,
        le=0.15,
        description="a number from 0 (off) to 0.15: how far pictures are tilted away, times the strength; helps where "
        "things are seen from many sides",
    )
    erase: float = Field(
        0.0,
        ge=0,
        le=1,
        description="a number from 0 (off) to 1: how often a box of a picture is blanked; helps where parts may be "
        "hidden",
    )
    trivial: bool = Field(
        False,
        description="true or false: TrivialAugment, one of 14 operations at a random strength for each picture, shared "
        "by some of its batch; helps long trainings of natural photographs",
    )
