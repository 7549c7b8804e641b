"""Lane detection on rendered roads: the data, the detector, its metrics, and the way to recorded frames."""

from lightning_robust.demo.lanes.data import LaneData as LaneData
from lightning_robust.demo.lanes.detector import LaneDetector as LaneDetector
from lightning_robust.demo.lanes.detector import RobustLaneDetector as RobustLaneDetector
from lightning_robust.demo.lanes.inference import predict as predict
from lightning_robust.demo.lanes.metrics import Bend as Bend
from lightning_robust.demo.lanes.metrics import LateralError as LateralError
from lightning_robust.demo.lanes.metrics import Swing as Swing
from lightning_robust.demo.lanes.network import LaneNetwork as LaneNetwork
from lightning_robust.demo.lanes.network import LaneOutput as LaneOutput
from lightning_robust.demo.lanes.pictures import LanePictures as LanePictures
from lightning_robust.demo.lanes.rendering import render_roads as render_roads
