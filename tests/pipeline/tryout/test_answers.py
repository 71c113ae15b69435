import io

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data.decode import decode_square
from pipeline.evaluation.grad_cam import grad_cam
from pipeline.evaluation.neighbours import Neighbour
from pipeline.models.checkpoint import save_checkpoint
from pipeline.models.classifier import save_classifier
from pipeline.tryout.answers import TriedModel, doubt_confidence, doubt_label, doubt_likeness, load_tried_model
from tests.pipeline.tryout.tried import CLASSES, CPU, SIZE_PX, pictures, small_model


@pytest.fixture
def model(tmp_path):
    return small_model(tmp_path)


def test_probabilities_are_those_of_the_served_model_the_likeliest_first(model):
    picture = pictures()[3]
    (served,) = model.classifier.probabilities([(picture,)], 1)
    found = model.answer((picture,)).probabilities
    assert dict(found) == pytest.approx(dict(zip(CLASSES, served, strict=True)))
    assert [value for _, value in found] == sorted(served, reverse=True)
    assert model.answer((picture,)).label == CLASSES[served.argmax()]


def test_the_heat_is_that_of_the_likeliest_class(model):
    picture = pictures()[3]
    answer = model.answer((picture,))
    images = torch.from_numpy(picture[None]).permute(0, 3, 1, 2) / 255
    of_class = [grad_cam(model.network, images, torch.tensor([index]))[0] for index in range(3)]
    likeliest = CLASSES.index(answer.label)
    np.testing.assert_allclose(answer.heat, of_class[likeliest], atol=1e-6)
    assert not any(np.allclose(answer.heat, of_class[index]) for index in {0, 1, 2} - {likeliest})


def test_a_training_picture_is_nearest_to_itself_and_that_is_said(model):
    answer = model.answer((pictures()[6],))
    assert (answer.neighbours[0].path, answer.neighbours[0].label) == ("6.png", "dog")
    assert answer.neighbours[0].similarity == pytest.approx(1, abs=1e-3)
    assert len(answer.neighbours) == 6
    assert any(said.startswith("It is all but the same as 6.png, on which") for said in answer.doubts)


def test_without_training_pictures_there_are_none_and_nothing_is_said_of_them():
    answer = small_model().answer((pictures()[6],))
    assert answer.neighbours == []
    assert not any("training" in said for said in answer.doubts)


def encoded(picture: Image.Image, kind: str, **settings) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(pictures()[0][:16]), "JPEG", exif=exif)


ODD = {
    "16 bits": lambda: encoded(Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)), "PNG"),
    "CMYK": lambda: encoded(Image.fromarray(pictures()[0]).convert("CMYK"), "JPEG"),
    "turned": turned,
    "big": lambda: encoded(Image.new("RGB", (5000, 4000), "teal"), "JPEG"),
    "transparent": lambda: encoded(Image.new("RGBA", (40, 40), (10, 20, 30, 40)), "PNG"),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_pictures_are_seen_as_in_training(model, kind):
    content = ODD[kind]()
    answer = model.answer(model.classifier.decode(content))
    wanted = decode_square(content, SIZE_PX, "crop", False, {"16": [0, 4095]})
    np.testing.assert_array_equal(answer.square, wanted)
    assert len(answer.probabilities) == 3


def test_a_backbone_without_a_map_has_no_heat():
    answer = small_model(backbone="test_vit2").answer((pictures()[0],))
    assert answer.heat is None


def test_what_was_logged_is_loaded(model, tmp_path):
    save_checkpoint(model.network, model.classifier.checkpoint, tmp_path / "network")
    save_classifier([tmp_path / "network"], 1.5, tmp_path / "logged")
    squares = (pictures()[2],)
    found, wanted = load_tried_model(tmp_path / "logged", tmp_path, CPU).answer(squares), model.answer(squares)
    assert dict(found.probabilities) == pytest.approx(dict(wanted.probabilities))
    assert [one.path for one in found.neighbours] == [one.path for one in wanted.neighbours]
    assert load_tried_model(tmp_path / "logged", None, CPU).answer(squares).neighbours == []


def test_what_is_loaded_has_answered_once_so_that_the_first_picture_need_not_wait(model, tmp_path, monkeypatch):
    save_checkpoint(model.network, model.classifier.checkpoint, tmp_path / "network")
    save_classifier([tmp_path / "network"], 1.5, tmp_path / "logged")
    answered = []
    monkeypatch.setattr(TriedModel, "answer", lambda self, squares: answered.append(squares[0].shape))
    load_tried_model(tmp_path / "logged", tmp_path, CPU)
    assert answered == [(SIZE_PX, SIZE_PX, 3)]


def test_of_an_ensemble_all_networks_answer_and_the_first_is_looked_into(model, tmp_path):
    other = small_model()
    torch.nn.init.normal_(other.network.head[-1].weight, std=9)
    for name, one in (("first", model), ("second", other)):
        save_checkpoint(one.network, one.classifier.checkpoint, tmp_path / name)
    save_classifier([tmp_path / "first", tmp_path / "second"], 1.5, tmp_path / "logged")
    tried, squares = load_tried_model(tmp_path / "logged", tmp_path, CPU), (pictures()[2],)
    (mean,) = tried.classifier.probabilities([squares], 1)
    answer, alone = tried.answer(squares), model.answer(squares)
    assert dict(answer.probabilities) == pytest.approx(dict(zip(CLASSES, mean, strict=True)))
    assert dict(answer.probabilities) != pytest.approx(dict(alone.probabilities), abs=1e-3)
    assert answer.neighbours == alone.neighbours


def near(*labelled) -> list[Neighbour]:
    return [Neighbour(label, f"{label}.png", similarity, b"") for label, similarity in labelled]


def test_a_low_probability_is_said_with_what_to_expect():
    said = doubt_confidence([("cat", 0.61), ("dog", 0.3), ("hen", 0.09)])
    assert said == "It is unsure: it gives cat 61%, and dog 30%. Of 10 such answers, expect 4 to be wrong."
    assert doubt_confidence([("cat", 0.75), ("dog", 0.25)]) == ""


def test_a_picture_unlike_all_of_training_is_said():
    assert doubt_likeness(near(("cat", 0.6)), 0.5) == ""
    assert "It may show none of the classes." in doubt_likeness(near(("cat", 0.41)), 0.5)
    assert "the nearest has a similarity of 0.41, and 98% of the validation pictures have one of 0.50 or more" in (
        doubt_likeness(near(("cat", 0.41)), 0.5)
    )
    assert doubt_likeness([], 0.5) == ""


def test_neighbours_with_another_label_are_said_if_they_are_most():
    mixed = near(("cat", 0.9), ("dog", 0.8), ("dog", 0.8))
    assert doubt_label("cat", mixed) == "Of the 3 training pictures nearest to it, 2 are labelled dog."
    assert doubt_label("dog", mixed) == ""
    assert doubt_label("cat", mixed[:2]) == ""
    assert doubt_label("cat", []) == ""
