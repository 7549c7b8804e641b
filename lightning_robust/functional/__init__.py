"""The mathematics: tensors and state dicts in and out, every public function by name.

Example:
    >>> import torch
    >>> from lightning_robust.functional import fgsm, uniform_soup
    >>> fgsm(lambda x: x.sum(), torch.zeros(1, 2), 0.5)
    tensor([[0.5000, 0.5000]])
    >>> uniform_soup([{"w": torch.tensor(1.0)}, {"w": torch.tensor(4.0)}]).state
    {'w': tensor(2.5000)}
"""

from lightning_robust.functional.activation_signs import activation_signs as activation_signs
from lightning_robust.functional.activation_signs import changed_signs as changed_signs
from lightning_robust.functional.ascent import Ascent as Ascent
from lightning_robust.functional.ascent import AttackRecord as AttackRecord
from lightning_robust.functional.ascent import count_useless as count_useless
from lightning_robust.functional.attacks import fgsm as fgsm
from lightning_robust.functional.attacks import nfgsm as nfgsm
from lightning_robust.functional.attacks import pgd as pgd
from lightning_robust.functional.averaging import RunningAverage as RunningAverage
from lightning_robust.functional.averaging import interpolate as interpolate
from lightning_robust.functional.averaging import lerp_into as lerp_into
from lightning_robust.functional.averaging import require_same as require_same
from lightning_robust.functional.basins import Barrier as Barrier
from lightning_robust.functional.basins import barriers as barriers
from lightning_robust.functional.basins import cosine as cosine
from lightning_robust.functional.batchnorm import Ranks as Ranks
from lightning_robust.functional.batchnorm import batchnorm_layers as batchnorm_layers
from lightning_robust.functional.batchnorm import refresh_batchnorm as refresh_batchnorm
from lightning_robust.functional.coefficients import learned_soup as learned_soup
from lightning_robust.functional.coefficients import stock_soup as stock_soup
from lightning_robust.functional.consistency import divergence as divergence
from lightning_robust.functional.consistency import pseudo_label_loss as pseudo_label_loss
from lightning_robust.functional.criticality import criticality_verdict as criticality_verdict
from lightning_robust.functional.criticality import permuted as permuted
from lightning_robust.functional.criticality import share_of_gain as share_of_gain
from lightning_robust.functional.criticality import weight_distance as weight_distance
from lightning_robust.functional.datapath import LayerDivergence as LayerDivergence
from lightning_robust.functional.datapath import channel_energy as channel_energy
from lightning_robust.functional.datapath import lasting as lasting
from lightning_robust.functional.datapath import parting_point as parting_point
from lightning_robust.functional.datapath import same_norm_noise as same_norm_noise
from lightning_robust.functional.embeddings import EmbeddingDeltas as EmbeddingDeltas
from lightning_robust.functional.embeddings import freelb_loss as freelb_loss
from lightning_robust.functional.embeddings import perturb_embedding as perturb_embedding
from lightning_robust.functional.embeddings import replayed_rng as replayed_rng
from lightning_robust.functional.fresh import looks_untrained as looks_untrained
from lightning_robust.functional.gates import CriticalChannels as CriticalChannels
from lightning_robust.functional.gates import Overlap as Overlap
from lightning_robust.functional.gates import covering as covering
from lightning_robust.functional.gates import critical_channels as critical_channels
from lightning_robust.functional.gates import first_order as first_order
from lightning_robust.functional.gates import jaccard as jaccard
from lightning_robust.functional.gates import overlaps as overlaps
from lightning_robust.functional.held_out import HeldOutScorer as HeldOutScorer
from lightning_robust.functional.held_out import require_finite as require_finite
from lightning_robust.functional.ingredients import require_ingredients as require_ingredients
from lightning_robust.functional.ingredients import state_of as state_of
from lightning_robust.functional.ingredients import states_of as states_of
from lightning_robust.functional.input_gradients import input_gradients as input_gradients
from lightning_robust.functional.line_motion import bends as bends
from lightning_robust.functional.line_motion import swings as swings
from lightning_robust.functional.linearization import Linearization as Linearization
from lightning_robust.functional.linearization import alignment as alignment
from lightning_robust.functional.linearization import central_difference as central_difference
from lightning_robust.functional.linearization import changed_predictions as changed_predictions
from lightning_robust.functional.linearization import linearization_gap as linearization_gap
from lightning_robust.functional.linearization import neuron_movement as neuron_movement
from lightning_robust.functional.linearization import relative_movement as relative_movement
from lightning_robust.functional.linearization import single_step as single_step
from lightning_robust.functional.linearization import tangent_kernel as tangent_kernel
from lightning_robust.functional.low_rank import adapter_pairs as adapter_pairs
from lightning_robust.functional.low_rank import mixable_start as mixable_start
from lightning_robust.functional.low_rank import refuse_trained_pairs as refuse_trained_pairs
from lightning_robust.functional.low_rank import require_one_basis as require_one_basis
from lightning_robust.functional.mixing import regmixup_batch as regmixup_batch
from lightning_robust.functional.norm_ball import NormBall as NormBall
from lightning_robust.functional.norm_ball import as_radius as as_radius
from lightning_robust.functional.norm_ball import per_sample as per_sample
from lightning_robust.functional.norm_ball import require_inside as require_inside
from lightning_robust.functional.picture_motion import move_boxes as move_boxes
from lightning_robust.functional.picture_motion import move_columns as move_columns
from lightning_robust.functional.picture_motion import move_masks as move_masks
from lightning_robust.functional.picture_motion import move_points as move_points
from lightning_robust.functional.picture_motion import rescale_motion as rescale_motion
from lightning_robust.functional.pixels import PixelSpace as PixelSpace
from lightning_robust.functional.quantization import quantize_block as quantize_block
from lightning_robust.functional.rotation import rotate_each as rotate_each
from lightning_robust.functional.rotation import rotate_quadrants as rotate_quadrants
from lightning_robust.functional.rotation import rotation_anomaly as rotation_anomaly
from lightning_robust.functional.rotation import square as square
from lightning_robust.functional.soups import Soup as Soup
from lightning_robust.functional.soups import SoupTrial as SoupTrial
from lightning_robust.functional.soups import greedy_soup as greedy_soup
from lightning_robust.functional.soups import uniform_soup as uniform_soup
from lightning_robust.functional.stability import absolute_distance as absolute_distance
from lightning_robust.functional.stability import scaled_distance as scaled_distance
from lightning_robust.functional.stability import spread_of as spread_of
from lightning_robust.functional.stability import symmetric_divergence as symmetric_divergence
from lightning_robust.functional.weights import Weights as Weights
from lightning_robust.functional.weights import awaits_first_pass as awaits_first_pass
from lightning_robust.functional.weights import call_with as call_with
from lightning_robust.functional.weights import channels_last as channels_last
from lightning_robust.functional.weights import state_on_cpu as state_on_cpu
