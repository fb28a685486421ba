"""Training of the paper's GANs with fused spectral normalization; needs ``fastsn[gan]``.

The data's way: images (``data``) and networks with their normalization and losses (``nets``) meet
in the training loop (``loop``), which writes a folder (``run``) and is judged by ``measure``;
``sweep`` makes many runs of it. Imports go the other way alone. The command ``fastsn`` is
:mod:`fastsn.gan.cli`. ``import fastsn`` does not import this package.
"""
