"""transformers' own suites, run on a tiny student.

They are those of the installed version; see support/transformers_tests.py, which also says where
they come from. `INAPPLICABLE` lists what is left out, each with its reason. What a suite skips by
itself (no GPU, no such layer) is not listed.
"""

import unittest

import pytest
import torch
from support import transformers_tests
from transformers import AutoTokenizer

from configuration_mvaema import MVaEMaConfig
from modeling_mvaema import MVaEMaModel
from processing_mvaema import MVaEMaImageProcessor, MVaEMaProcessor, train_tokenizer

if transformers_tests.folder() is None:
    pytest.skip(
        "transformers' own tests are not here; `make .venv/.test` fetches them",
        allow_module_level=True,
    )

pytestmark = pytest.mark.slow
modeling = transformers_tests.load("test_modeling_common")
configuration = transformers_tests.load("test_configuration_common")
processing = transformers_tests.load("test_processing_common")
image_processing = transformers_tests.load("test_image_processing_common")

ROWS, LENGTH, VOCABULARY = 3, 7, 99
TINY = {
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 32,
    "intermediate_size": 37,
    "num_attention_heads": 4,
    "num_image_layers": 2,
    "num_text_layers": 2,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 40,
    "projection_dim": 16,
}

OF_THE_TOKENIZER = (
    "compares with the tokenizer alone; a prompt of ours begins with [ENC] "
    "(test_processing.test_special_tokens_frame_each_kind_of_text)"
)
OF_TEXT_CONFIG = "reads config.text_config; ours is one configuration (test_outputs.py)"
INAPPLICABLE = {
    "ModelTest": {
        "test_attention_outputs": "counts fields and wants cross-attention as long as the question;"
        " ours has image_embeds too, and attends to image and question (test_outputs.py)",
        "test_get_text_features_output_0": OF_TEXT_CONFIG,
        "test_get_text_features_output_2": OF_TEXT_CONFIG,
        "test_model_base_model_prefix": "wants a base model inside a head model; ours is one class",
    },
    "ProcessorTest": {
        "test_apply_chat_template_assistant_mask": "trains on assistant turns inside a prompt; ours"
        " are the decoder's labels",
        "test_apply_chat_template_image_0": OF_THE_TOKENIZER,
        "test_apply_chat_template_image_1": OF_THE_TOKENIZER,
        "test_subprocessor_defaults_0_text": OF_THE_TOKENIZER,
        "test_processor_from_and_save_pretrained": "transformers drops auto_map when it loads the "
        "processor of a repository with code of its own",
        "test_processor_from_and_save_pretrained_as_nested_dict": "the same",
    },
    "ImageProcessorTest": {
        "test_call_numpy_4_channels": "wants a mean for the fourth channel; ours is transparency, "
        "laid on white (test_processing.test_transparent_pixels_are_white)",
        "test_image_processor_save_load_with_autoimageprocessor": "AutoImageProcessor asks at the "
        "terminal whether to trust the repository's code",
        "test_new_models_require_torchvision_backend": "ours is always Pillow's, by design",
    },
}
if not hasattr(modeling.GenerationTesterMixin, "test_greedy_generate"):
    INAPPLICABLE["ModelTest"]["test_generation_tester_mixin_inheritance"] = (
        "the source distribution lacks transformers' generation tests"
    )


def without_inapplicable(suite: type) -> type:
    """The suite, the tests that do not apply skipped with their reasons."""
    for name, reason in INAPPLICABLE[suite.__name__].items():
        setattr(suite, name, unittest.skip(reason)(getattr(suite, name)))
    return suite


class ModelTester:
    """What the suite asks of a model's tester."""

    batch_size = ROWS
    is_training = True
    seq_length = encoder_seq_length = decoder_seq_length = LENGTH
    hidden_size = TINY["hidden_size"]
    num_hidden_layers = TINY["num_text_layers"]
    num_attention_heads = TINY["num_attention_heads"]
    attn_implementation = None

    def prepare_config_and_inputs_for_common(self) -> tuple[MVaEMaConfig, dict]:
        ids = modeling.ids_tensor([ROWS, LENGTH], VOCABULARY - 5) + 5
        inputs = {
            "input_ids": ids,
            "pixel_values": modeling.floats_tensor([ROWS, 3, 16, 16]),
            "attention_mask": torch.ones_like(ids),
            "decoder_input_ids": modeling.ids_tensor([ROWS, LENGTH], VOCABULARY - 5) + 5,
        }
        config = MVaEMaConfig(**TINY)
        if self.attn_implementation:
            config._attn_implementation = self.attn_implementation
        return config, inputs


@without_inapplicable
class ModelTest(modeling.ModelTesterMixin, modeling.GenerationTesterMixin, unittest.TestCase):
    all_model_classes = (MVaEMaModel,)
    is_encoder_decoder = True
    additional_model_inputs = ["pixel_values"]
    # It looks for the width in `vision_config`; ours is the text stack's, and `vision_config` may
    # be None (test_outputs.py checks the shape).
    skip_test_image_features_output_shape = True

    def setUp(self):
        self.model_tester = ModelTester()

    def test_model_outputs_equivalence(self):
        self.model_tester.attn_implementation = "eager"  # it asks for attention weights
        super().test_model_outputs_equivalence()

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = super()._prepare_for_class(inputs_dict, model_class)
        if return_labels:  # an answer and a statement: all three losses
            inputs |= {"labels": inputs["input_ids"], "statement_ids": inputs["input_ids"]}
        return inputs


class ConfigTest(unittest.TestCase):
    def test_config(self):
        """Without the list of common arguments, which the source distribution lacks."""
        tester = configuration.ConfigTester(self, config_class=MVaEMaConfig, **TINY)
        tester.run_common_tests()


@without_inapplicable
class ProcessorTest(processing.ProcessorTesterMixin, unittest.TestCase):
    processor_class = MVaEMaProcessor

    @classmethod
    def _setup_image_processor(cls):
        return MVaEMaImageProcessor(size={"height": 32, "width": 32})

    @classmethod
    def _setup_tokenizer(cls):
        tokenizer = train_tokenizer(["lower newer what is it how large"] * 2, 300, 128)
        return MVaEMaProcessor.from_tokenizer(tokenizer).tokenizer

    def get_component(self, attribute, use_tiny_ckpt=True, **kwargs):
        # Not through AutoImageProcessor, which wants this repository's code to be trusted.
        classes = {"image_processor": MVaEMaImageProcessor, "tokenizer": AutoTokenizer}
        return classes[attribute].from_pretrained(self.tmpdirname, **kwargs)


class ImageProcessorTester(image_processing.ImageProcessingTester):
    def __init__(self, parent):
        super().__init__(parent, size={"height": 32, "width": 32})

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"pil": MVaEMaImageProcessor}


@without_inapplicable
class ImageProcessorTest(image_processing.ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = ImageProcessorTester
