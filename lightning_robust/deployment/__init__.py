"""From a module to an engine and back: export, precision, execution, preprocessing, parity. Knows no Trainer.

Ten words have one meaning each in this package:

- *subject*: the module under test together with its sample inputs.
- *target*: what executes the subject, written ``<runtime>-<precision>``, such as ``emulated-fp16``.
- *reference*: what PyTorch computes from the same inputs in fp64.
- *distance*: how far two sets of outputs are apart.
- *unit*: a quantity that the module decodes from its outputs, such as ``lateral_px``; distances are given in it.
- *perturbation*: one difference of preprocessing, such as BGR for RGB.
- *sensitivity*: the distance that a perturbation, or one node in low precision, causes.
- *cause*: what a part of a distance is attributed to: export, TF32, fp16, engine, preprocessing.
- *finding*: a problem that lint reads off a graph.
- *deployed side*: whatever feeds and runs the network after training: a car, a robot, a scanner.
"""
