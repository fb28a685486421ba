"""Training of the paper's GANs with fused spectral normalization; needs ``fastsn[gan]``.

The data's way: images (:mod:`fastsn.gan.data`) and networks (:mod:`fastsn.gan.models`),
normalized from outside (:mod:`fastsn.gan.normalization`), meet a loss (:mod:`fastsn.gan.losses`) in
the training loop (:mod:`fastsn.gan.train`); :mod:`fastsn.gan.metrics` judges the result. The
command ``fastsn`` is :mod:`fastsn.gan.cli`. ``import fastsn`` does not import this package.
"""
