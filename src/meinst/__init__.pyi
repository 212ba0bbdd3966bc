from .codec_tools.fit import fit_codec
from .codecs.base import Codec
from .codecs.options import CodecOptions
from .codecs.pca import PCACodec
from .codecs.registry import load_codec
from .data.coco import CocoData, read_coco
from .data.datasets.dataset import Dataset, open_dataset
from .data.frames import read_frames
from .data.images import load_image
from .data.metrics import coco_metrics
from .detections import Detections
from .detector.meinst import MEInst
from .detector.passes import TileOptions
from .detector.predictor import Predictor
from .detector.select import SelectOptions
from .diagnosis.diagnose import Diagnosis, diagnose
from .diagnosis.html import write_report
from .export.export import export_model
from .images.intensity import InputOptions
from .inference.evaluate import Metrics, evaluate
from .inference.predict import predict_files
from .models.checkpoint import list_models, save_model
from .models.load import load
from .models.recipe import Recipe, list_recipes, load_recipe
from .training.options import TrainOptions
from .training.train import train
from .version import __version__

__all__ = [
    "CocoData",
    "Codec",
    "CodecOptions",
    "Dataset",
    "Detections",
    "Diagnosis",
    "InputOptions",
    "MEInst",
    "Metrics",
    "PCACodec",
    "Predictor",
    "Recipe",
    "SelectOptions",
    "TileOptions",
    "TrainOptions",
    "__version__",
    "coco_metrics",
    "diagnose",
    "evaluate",
    "export_model",
    "fit_codec",
    "list_models",
    "list_recipes",
    "load",
    "load_codec",
    "load_image",
    "load_recipe",
    "open_dataset",
    "predict_files",
    "read_coco",
    "read_frames",
    "save_model",
    "train",
    "write_report",
]
