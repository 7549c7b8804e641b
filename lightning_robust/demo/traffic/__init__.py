"""Vehicles, signs and the drivable area on rendered roads."""

from lightning_robust.demo.traffic.objects import CLASSES as CLASSES
from lightning_robust.demo.traffic.rendering import Traffic as Traffic
from lightning_robust.demo.traffic.rendering import render_traffic as render_traffic
