"""Studies of the four published data sets of photographs, which stay on disk: `LARGE`, by name like all others.

The folder that COURSE_DATA names holds the lists and the pictures as their authors published them
(`photo_sets.load_photos()`); number of images and classes, largest and smallest class are compared with those that
were published. Pictures stream from disk into every training; on a GPU, other processes read them.

Who wants to compare with published numbers reads here what is the same and what is not:

- imagenet-lt, inaturalist-2018: network, batch, learning rate, weight decay, epochs and cosine schedule of stage 1 of
  Kang et al. 2020, as their released configurations have them. Their rate belongs to their batch: scale both together.
- places-lt: that work gives no configuration of stage 1. It starts from ImageNet weights and trains the last block and
  the classifier, for 30 or 90 epochs. Here: torchvision's weights, all of the last of the four stages, 30 epochs.
- tiny-imagenet-lt: Cao et al. 2019 released no settings for it. Here: theirs for CIFAR, and a ResNet-18 at 64 pixels.
- DRW starts at 0.8 of training everywhere, which is a choice of this course. LDAM's largest margin is 0.5 everywhere;
  its authors advise 0.3 for iNaturalist.
- cRT, LWS, NCM and tau-normalization read features that are computed once, without augmentation. The released code
  shows new random parts of the images to cRT and LWS, and goes on changing the statistics of batch normalization.
- Released code reports the best epoch on validation images, which for iNaturalist and Tiny-ImageNet are the test
  images. Here the last epoch counts, and of these images a part is for choices (`study_data.FOR_CHOICES`), the rest is
  the test.
- Pictures are scaled bicubically, and a random part is 8 to 100 % of a picture.

Not supported, and refused by name: OLTR memory, whose attention needs a map of features that torchvision's networks do
not hand out. There is no ResNet-10, the network of OLTR's tables.
"""

from __future__ import annotations

from dataclasses import replace

from ..methods import METHODS
from ..runtime import require
from .studies import STUDIES, Study

_METHODS = tuple(name for name in METHODS if name != "OLTR memory")
_KANG = Study(
    what="ImageNet-LT, ResNeXt-50 from scratch, 90 epochs, as Kang et al. 2020",
    data="imagenet-lt",
    profile="as it is",
    size=224,
    network="ResNeXt-50",
    methods=_METHODS,
    seeds=(0, 1, 2),
    epochs=90,
    batch_size=512,
    lr=0.2,
    weight_decay=5e-4,
    schedule="cosine",
    augment="part, flip, color",
)
LARGE: dict[str, Study] = {
    "tiny-imagenet-lt": replace(
        STUDIES["cifar10-lt"],
        what="Tiny-ImageNet cut to ratio 100, ResNet-18 from scratch, 200 epochs; no published protocol",
        data="tiny-imagenet",
        max_count=500,
        validation_from="set aside",
        size=64,
        network="ResNet-18",
        methods=_METHODS,
        augment="part, flip",
    ),
    "imagenet-lt": _KANG,
    "places-lt": replace(
        _KANG,
        what="Places-LT, last stage of a ResNet-152 with ImageNet weights, 30 epochs, close to Kang et al. 2020",
        data="places-lt",
        network="ResNet-152, last stage",
        epochs=30,
        batch_size=256,
        lr=0.1,
    ),
    "inaturalist-2018": replace(
        _KANG,
        what="iNaturalist 2018, ResNet-50 from scratch, 90 epochs, as Kang et al. 2020",
        data="inaturalist-2018",
        network="ResNet-50",
        weight_decay=1e-4,
        augment="part, flip",
    ),
}


def check_large(study: Study) -> None:
    """Refuse what these studies cannot do, before anything is read."""
    for name in study.methods:
        allowed = "all others; its attention needs a map of features, which torchvision's networks do not hand out"
        require(name != "OLTR memory", "methods", repr(name), allowed)
