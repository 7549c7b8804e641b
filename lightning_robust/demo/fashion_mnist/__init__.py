"""Fashion-MNIST: 28 x 28 grey pictures of ten kinds of clothes, and a small convolutional classifier."""

from lightning_robust.demo.fashion_mnist.classifier import ImageClassifier as ImageClassifier
from lightning_robust.demo.fashion_mnist.classifier import RobustImageClassifier as RobustImageClassifier
from lightning_robust.demo.fashion_mnist.data import FashionMNISTData as FashionMNISTData
