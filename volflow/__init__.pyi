"""The public names, each once: type checkers read them here, and `volflow` loads them from here."""

from volflow import demo as demo
from volflow import errors as errors
from volflow.engine.cluster import connect as connect
from volflow.engine.detached.detached_run import DetachedRun as DetachedRun
from volflow.engine.time_limit import time_limit as time_limit
from volflow.geometry.roi import Roi as Roi
from volflow.infer.aggregate.grid_aggregator import GridAggregator as GridAggregator
from volflow.infer.audit.audit import verify as verify
from volflow.infer.halo import halo as halo
from volflow.infer.lazy.map_model import map_model as map_model
from volflow.infer.predict import plan_predict as plan_predict
from volflow.infer.predict import predict as predict
from volflow.infer.seams.certify import certify_seams as certify_seams
from volflow.jobs.batch.convert_cases import convert_cases as convert_cases
from volflow.jobs.batch.detached_batch import DetachedBatch as DetachedBatch
from volflow.jobs.batch.predict_cases import predict_cases as predict_cases
from volflow.jobs.pipeline.run_pipeline import plan_run as plan_run
from volflow.jobs.pipeline.run_pipeline import run as run
from volflow.model.bundle import ModelLike as ModelLike
from volflow.model.bundle import load_model as load_model
from volflow.model.bundle import save_model as save_model
from volflow.model.unet import UNet as UNet
from volflow.report.observe import observe as observe
from volflow.report.pictures.compare import compare as compare
from volflow.report.pictures.patch_pictures import patch_sheet as patch_sheet
from volflow.report.pictures.patch_pictures import patch_stats as patch_stats
from volflow.report.pictures.preview import contact_sheet as contact_sheet
from volflow.report.pictures.preview import preview as preview
from volflow.report.pictures.seams_figure import seams_figure as seams_figure
from volflow.report.viewers.link import view as view
from volflow.report.viewers.napari import napari_snippet as napari_snippet
from volflow.sampling.augment.augment import Augment as Augment
from volflow.sampling.cases.check_cases import check_cases as check_cases
from volflow.sampling.cases.find_cases import find_cases as find_cases
from volflow.sampling.cases.open_cases import open_cases as open_cases
from volflow.sampling.sample import sample as sample
from volflow.sampling.samplers import GridSampler as GridSampler
from volflow.sampling.samplers import LabelSampler as LabelSampler
from volflow.sampling.samplers import UniformSampler as UniformSampler
from volflow.sampling.samplers import WeightedSampler as WeightedSampler
from volflow.sampling.stream import PatchStream as PatchStream
from volflow.store.volume import Volume as Volume
from volflow.store.volume import open_volume as open  # noqa: F401
from volflow.training import losses as losses
from volflow.training.whole_volume import WholeVolume as WholeVolume
from volflow.volumes.arrays.inputs import VolumeLike as VolumeLike
from volflow.volumes.convert import convert as convert
from volflow.volumes.convert import plan_convert as plan_convert
from volflow.volumes.export import export as export
from volflow.volumes.overlap.map_overlap import map_overlap as map_overlap
from volflow.volumes.pyramid.pyramid import plan_pyramid as plan_pyramid
from volflow.volumes.pyramid.pyramid import pyramid as pyramid
from volflow.volumes.statistics import statistics as statistics
from volflow.volumes.write import write as write

__version__: str
