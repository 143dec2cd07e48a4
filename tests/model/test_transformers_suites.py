"""transformers' own suites, run on a tiny student."""

import unittest

import pytest
import torch
from support import transformers_tests

from configuration_mvaema import MVaEMaConfig
from modeling_mvaema import MVaEMaModel

if transformers_tests.folder() is None:
    pytest.skip("no suites", allow_module_level=True)

modeling = transformers_tests.load("test_modeling_common")


class Tester:
    batch_size = 3
    seq_length = 7
    decoder_seq_length = 7
    encoder_seq_length = 7
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    is_training = True

    def __init__(self, parent):
        self.parent = parent
        image_tokens = 1 + 4
        self.key_length = image_tokens + self.seq_length

    def get_config(self):
        return MVaEMaConfig(
            image_size=16, patch_size=8, hidden_size=32, intermediate_size=37,
            num_attention_heads=4, num_image_layers=2, num_text_layers=2, vocab_size=99,
            max_position_embeddings=40, projection_dim=16,
        )

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        ids = modeling.ids_tensor([3, 7], 90) + 5
        inputs = {
            "pixel_values": modeling.floats_tensor([3, 3, 16, 16]),
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "decoder_input_ids": modeling.ids_tensor([3, 7], 90) + 5,
        }
        return config, inputs


class TestModel(modeling.ModelTesterMixin, unittest.TestCase):
    all_model_classes = (MVaEMaModel,)
    is_encoder_decoder = True

    def setUp(self):
        self.model_tester = Tester(self)
