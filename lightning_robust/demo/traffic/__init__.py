"""Vehicles, signs and the drivable area on rendered roads: the data, the detector and its metrics."""

from lightning_robust.demo.traffic.data import TrafficData as TrafficData
from lightning_robust.demo.traffic.detector import RobustTrafficDetector as RobustTrafficDetector
from lightning_robust.demo.traffic.detector import TrafficDetector as TrafficDetector
from lightning_robust.demo.traffic.network import TrafficNetwork as TrafficNetwork
from lightning_robust.demo.traffic.network import TrafficOutput as TrafficOutput
from lightning_robust.demo.traffic.objects import CLASSES as CLASSES
from lightning_robust.demo.traffic.rendering import Traffic as Traffic
from lightning_robust.demo.traffic.rendering import render_traffic as render_traffic
