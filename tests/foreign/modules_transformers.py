"""Modules around HuggingFace transformers and peft, written as their documentation writes them; no download."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from .guest import Guest, loaders, picture

transformers = pytest.importorskip("transformers")

LENGTH, VOCABULARY = 6, 40


class BertClassifier(pl.LightningModule):
    """As in Lightning's text classification example: the batch is what ``forward`` takes, by name."""

    def __init__(self, lr=0.05):
        super().__init__()
        self.save_hyperparameters()
        config = transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=LENGTH,
            num_labels=2,
        )
        self.model = transformers.BertForSequenceClassification(config)

    def forward(self, **inputs):
        return self.model(**inputs)

    def training_step(self, batch, batch_idx):
        outputs = self(**batch)
        return outputs[0]

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        outputs = self(**batch)
        val_loss, logits = outputs[:2]
        self.log("val_loss", val_loss, prog_bar=True)
        self.log("val_acc", (logits.argmax(-1) == batch["labels"]).float().mean())
        return {"loss": val_loss, "preds": logits.argmax(-1), "labels": batch["labels"]}

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


def tokens(generator, index):
    length = 4 + index % 3
    ids = torch.randint(3, VOCABULARY, (LENGTH,), generator=generator)
    mask = (torch.arange(LENGTH) < length).long()
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.tensor(index % 2)}


def collate_encoding(samples):
    """What a DataCollatorWithPadding gives."""
    return transformers.BatchEncoding({name: torch.stack([s[name] for s in samples]) for name in samples[0]})


def bert():
    return BertClassifier(), *loaders(tokens, collate_fn=collate_encoding)


def vit_network(**settings):
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=16,
        patch_size=8,
        num_labels=3,
        **settings,
    )
    return transformers.ViTForImageClassification(config)


class ViTClassifier(pl.LightningModule):
    """As in HuggingFace's notebook on fine-tuning ViT with Lightning."""

    def __init__(self, lr=0.05, **kwargs):
        super().__init__(**kwargs)
        self.lr = lr
        self.vit = self.network()

    def network(self):
        return vit_network()

    def forward(self, pixel_values):
        outputs = self.vit(pixel_values=pixel_values)
        return outputs.logits

    def common_step(self, batch, batch_idx):
        pixel_values, labels = batch["pixel_values"], batch["labels"]
        logits = self(pixel_values)
        loss = nn.CrossEntropyLoss()(logits, labels)
        correct = (logits.argmax(-1) == labels).sum().item()
        return loss, correct / pixel_values.shape[0]

    def training_step(self, batch, batch_idx):
        loss, accuracy = self.common_step(batch, batch_idx)
        self.log("training_loss", loss)
        self.log("training_accuracy", accuracy)
        return loss

    def validation_step(self, batch, batch_idx):
        loss, accuracy = self.common_step(batch, batch_idx)
        self.log("val_loss", loss, on_epoch=True)
        self.log("val_acc", accuracy, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=self.lr, momentum=0.9)


def pixels(generator, index):
    image, label = picture(generator, index)
    return {"pixel_values": image, "labels": label}


def vit():
    return ViTClassifier(), *loaders(pixels)


class SegFormer(pl.LightningModule):
    """As in HuggingFace's notebook on fine-tuning SegFormer with Lightning; the network computes its own loss."""

    def __init__(self):
        super().__init__()
        config = transformers.SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[8, 8],
            patch_sizes=[3, 3],
            strides=[2, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=8,
            num_labels=3,
        )
        self.model = transformers.SegformerForSemanticSegmentation(config)

    def forward(self, pixel_values, labels=None):
        return self.model(pixel_values=pixel_values, labels=labels)

    def training_step(self, batch, batch_nb):
        outputs = self(batch["pixel_values"], batch["labels"])
        self.log("loss", outputs[0])
        return outputs[0]

    def validation_step(self, batch, batch_nb):
        loss, logits = self(batch["pixel_values"], batch["labels"])[:2]
        upsampled = nn.functional.interpolate(logits, batch["labels"].shape[-2:], mode="bilinear")
        self.log("val_loss", loss)
        self.log("val_acc", (upsampled.argmax(1) == batch["labels"]).float().mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


def masked(generator, index):
    image, _ = picture(generator, index)
    return {"pixel_values": image, "labels": (image.mean(0) * 3).long().clamp(0, 2)}


def segformer():
    return SegFormer(), *loaders(masked)


class Yolos(pl.LightningModule):
    """As in HuggingFace's notebook on fine-tuning YOLOS with Lightning: labels are a list of dicts."""

    def __init__(self):
        super().__init__()
        config = transformers.YolosConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=[16, 16],
            patch_size=8,
            num_detection_tokens=3,
            num_labels=2,
        )
        self.model = transformers.YolosForObjectDetection(config)

    def forward(self, pixel_values):
        return self.model(pixel_values=pixel_values)

    def common_step(self, batch, batch_idx):
        labels = [{k: v.to(self.device) for k, v in t.items()} for t in batch["labels"]]
        outputs = self.model(pixel_values=batch["pixel_values"], labels=labels)
        return outputs.loss, outputs.loss_dict

    def training_step(self, batch, batch_idx):
        loss, loss_dict = self.common_step(batch, batch_idx)
        self.log("training_loss", loss)
        for k, v in loss_dict.items():
            self.log("train_" + k, v.item())
        return loss

    def validation_step(self, batch, batch_idx):
        loss, loss_dict = self.common_step(batch, batch_idx)
        self.log("val_loss", loss, batch_size=len(batch["pixel_values"]))
        for k, v in loss_dict.items():
            self.log("validation_" + k, v.item(), batch_size=len(batch["pixel_values"]))
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-2)


def boxed(generator, index):
    image, label = picture(generator, index, classes=2)
    centre = 0.3 + 0.4 * torch.rand(1, 2, generator=generator)
    return image, {"class_labels": label[None], "boxes": torch.cat([centre, torch.full((1, 2), 0.3)], 1)}


def collate_boxes(samples):
    return {"pixel_values": torch.stack([s[0] for s in samples]), "labels": [s[1] for s in samples]}


def yolos():
    return Yolos(), *loaders(boxed, collate_fn=collate_boxes)


class LoraViT(ViTClassifier):
    """ViT of which only LoRA factors and the head are trained."""

    def network(self):
        peft = pytest.importorskip("peft")
        config = peft.LoraConfig(
            r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], modules_to_save=["classifier"], lora_dropout=0.0
        )
        return peft.get_peft_model(vit_network(), config)


def lora():
    return LoraViT(), *loaders(pixels)


PIXELS = {"inputs": ("pixel_values",), "classes": "labels"}
GUESTS = [
    Guest(
        "bert",
        bert,
        "tokens",
        (),
        classes="labels",
        embedding="model.bert.embeddings.word_embeddings",
        forward=lambda m, b: m(**b),
    ),
    Guest("vit", vit, **PIXELS, features="vit.vit.layernorm", host=ViTClassifier),
    Guest("segformer", segformer, inputs=("pixel_values",), forward=lambda m, b: m(b["pixel_values"], b["labels"])),
    Guest("yolos", yolos, inputs=("pixel_values",)),
    Guest("lora", lora, **PIXELS, features="vit.base_model.model.vit.layernorm", host=LoraViT),
]
