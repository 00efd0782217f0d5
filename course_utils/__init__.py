"""Companion package of the course on long-tailed data: the methods as the notebooks teach them, tested.

Import a name from the file that defines it: `from course_utils.losses import LDAMLoss`. In reading order:

    data                  LabeledImages in memory, class counts and long-tail profiles, splits, load_images()
    metrics               accuracy by class and group, calibration, open set, forgetting, intervals over seeds
    networks              backbones that end in features: MLP, SmallCNN, ResNet32, EfficientNetLite0
    training              fit(), the one training loop; batches, augmentation, learning rates; predict, features
    losses                class weights, focal, LDAM, DRW; distillation and LUCIR's terms
    sampling              the four samplers, deferred re-sampling
    heads                 the classifier: cosine, more rows for new classes, surgery on row norms
    decoupling            NCM, cRT, LWS, tau-normalization: a new classifier on features that stay
    incremental_methods   LUCIR, iCaRL, BiC and WA as small choices (Arm), and the loss of a phase
    incremental           classes that arrive in phases: exemplars, herding, run_incremental()
    openworld             OLTR: memory, attention, centroid loss; known against unknown
    methods               METHODS: every method for one long-tailed training set, in stages, under one budget
    texts                 LabeledTexts, load_texts(), BiLSTM and a bag of words: the same methods read texts
    photos                Photos that stay on disk: folders and lists of files, View, batches while training runs
    backbones             pretrained networks, features computed once, every method as a head, fine-tuning
    classifier            PhotoClassifier: one file that names the class of a picture, where it works
    photo_sets            load_photos(): Tiny-ImageNet, ImageNet-LT, Places-LT, iNaturalist 2018

and behind them the machinery:

    runtime               start(): device, precision, seed, threads; files written whole
    machinery/            how numbers and files come in, checkpoints, several processes
    experiments/          grids, studies, reports, the command line, clusters
    classroom/            figures, sliders, exercises and their checks, running notebooks, grading

A file imports only from files further down this order: runtime, machinery, metrics, data, photos, photo_sets, networks,
sampling, losses, heads, training, then the methods, texts, backbones and classifier. Nothing in front imports from
experiments and classroom, and classroom not from experiments.
"""

__version__ = "0.1.0"
