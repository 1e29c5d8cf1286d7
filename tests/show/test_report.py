"""The report on made-up runs that lack this and that, without its figures: what it says, and what it refuses."""

import re
from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pytest
import xarray as xr

from polca.analysis.clustering import cluster_directions
from polca.analysis.decomposition import trajectories
from polca.analysis.joint import cluster_tokens
from polca.show import report
from polca.show.report import html_report

NASTY = ["<script>alert(1)</script>", "\"'>", " \n", "😀", "שלום", "\u202e rtl", "&amp;", ""]


def made_up(tokens=80, steps=np.arange(0, 401, 20), directions=3, late=20, texts=True, seed=0):
    """A projection in which the last `late` tokens fall around step 300, the others around step 60, each along its own
    directions.
    """
    rng = np.random.default_rng(seed)
    kind = np.arange(tokens) >= tokens - late
    t = np.clip((steps[:, None] - np.where(kind, 260, 20)) / 80, 0, 1)
    slope = -((steps[:, None] >= np.where(kind, 260, 20)) & (steps[:, None] <= np.where(kind, 340, 100))).astype(float)
    gradient = slope[:, :, None] * (np.arange(directions) % 2 == kind[:, None]) + 0.05 * rng.normal(
        size=(len(steps), tokens, directions)
    )
    movement = np.full((len(steps) - 1, directions), 0.1) * np.diff(steps)[:, None] / 20
    loss = 3 - np.where(kind, 0.6, 2) * t + 0.02 * rng.normal(size=(len(steps), tokens))
    rest = np.diff(loss, axis=0) - (0.5 * (gradient[1:] + gradient[:-1]) * movement[:, None]).sum(-1)
    coords = {
        "step": steps,
        "interval": steps[:-1],
        "interval_end": ("interval", steps[1:]),
        "token": range(tokens),
        "direction": range(directions),
        "end": ["start", "end"],
        "example": ("token", np.arange(tokens) // 8),
        "position": ("token", np.arange(tokens) % 8 + 1),
        "target_id": ("token", np.arange(tokens) % 7),
        "source_step": ("direction", [40, -1, 200][:directions]),
        "eigenvalue": ("direction", [4.0, np.nan, 1.0][:directions]),
    }
    if texts:
        coords |= {
            "target": ("token", [" late" if k else NASTY[i % len(NASTY)] for i, k in enumerate(kind)]),
            "document": ("token", np.where(np.arange(tokens) < 40, "<b>one</b>", "two")),
            "place": ("token", np.arange(tokens)),
            "before": ("token", [f"<i>before\n {NASTY[i % 8]}" for i in range(tokens)]),
            "after": ("token", [NASTY[-i % 8] * 9 for i in range(tokens)]),
        }
    return xr.Dataset(
        {
            "loss": (("step", "token"), loss),
            "gradient": (("step", "token", "direction"), gradient),
            "movement": (("interval", "direction"), movement),
            "outside": (("interval", "token", "end"), np.stack([rest, rest], -1)),
        },
        coords,
    )


def curves_of(projection):
    return trajectories(projection, "trapezoid")


def clustered(projection):
    "Both recipes, for few tokens."
    curves = curves_of(projection)
    return {
        "recommended": cluster_tokens(projection, n_clusters=[2]),
        "paper": (curves, cluster_directions(curves, 10, 3)),
    }


def without_clusters(projection, **keep):
    "A clustering by sizes that are never reached."
    curves = curves_of(projection)
    return curves, cluster_directions(curves, 70, 60, **keep)


class Tags(HTMLParser):
    "Checks that all tags are closed in order, and collects what they are and point to."

    def __init__(self, page):
        super().__init__()
        self.open = []
        self.all = set()
        self.links = []
        self.text = ""
        self.feed(page)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.all.add(tag)
        self.links += [v for n, v in attrs if n in ("src", "href")]
        assert not any(n.startswith("on") for n, _ in attrs)
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        self.text += data


def check_page(page):
    tags = Tags(page)
    assert not tags.all & {"script", "link", "iframe", "i-frame", "object", "form", "b>"} and all(
        v.startswith(("data:image/svg+xml,", "#")) for v in tags.links
    )
    assert "nan" not in re.sub("<[^>]*>", " ", page).lower().split() and "url(http" not in page
    return tags


@pytest.fixture(autouse=True)
def no_figures(monkeypatch):
    "Figures are drawn, and closed; their images take most of the time of a report."

    def closed(fig, words):
        plt.close(fig)
        return f"<p>{len(words)}</p>"

    monkeypatch.setattr(report, "html_figure", closed)


@pytest.fixture(scope="module")
def texts():
    return made_up()


def test_without_texts_and_source_steps():
    plain = made_up(texts=False).drop_vars(["source_step", "eigenvalue"])
    page = html_report("Bare", plain, clustered(plain), 200, 40)
    check_page(page)
    assert "eigenvalue" not in page
    assert "<th class=t>target_id</th>" not in page
    assert "<th>target_id</th>" in page


def test_one_document_and_one_direction():
    one = made_up(directions=1).isel(token=slice(20, 80))
    one = one.assign_coords(token=range(60), document=("token", ["only"] * 60))
    page = html_report("One", one, clustered(one), 200, 40)
    check_page(page)
    for said in ("60 tokens</b> of 1 document,", "1 direction</b>", "taken at step 40"):
        assert said in page


def test_a_clustering_that_finds_nothing(texts):
    page = html_report("None", texts, {"HDBSCAN & co": without_clusters(texts)}, 200, 40)
    check_page(page)
    assert page.count("HDBSCAN &amp; co</i>: <b>no clusters were found</b>") == 2


def test_tokens_that_a_filter_left(texts):
    kept = np.arange(80)[:, None] < [50, 60, 69]
    keep = xr.DataArray(kept, {"token": range(80), "direction": range(3)}, ("token", "direction"))
    page = html_report("Few", texts, {"few": without_clusters(texts, keep_tokens=keep)}, 200, 40)
    assert "<b>no clusters were found</b> (50 tokens left after filter 2" in page


def test_without_clusterings_and_twice_the_same(texts):
    page = html_report("Nothing", texts, {}, 200, 40)
    check_page(page)
    assert "Clusters" not in page
    assert page == html_report("Nothing", texts, {}, 200, 40)


def test_too_few_checkpoints_for_a_break():
    "A window of 200 fits twice into 400 steps, but around no checkpoint."
    two = made_up(steps=np.array([0, 400]))
    page = html_report("Two", two, clustered(two), 400, 200)
    check_page(page)
    assert "<b>Too few checkpoints for a break</b>: the window of 200 steps" in page
    assert "There are too few checkpoints for a break." in page
    own = page.partition("How to read this</h2>")[0].partition("</style>")[2]
    assert "hidden breakthrough" not in own.replace("those with most hidden breakthroughs", "")


def test_a_loss_that_rises():
    rising = made_up()
    rising["loss"] = rising["loss"].isel(step=slice(None, None, -1)).assign_coords(step=rising["step"])
    page = html_report("Up", rising, {}, 0, 40)
    assert "The mean loss does not fall" in page
    assert "is not to be relied on" in page
    assert "<b>Token</b>: one predicted token" in page and "<b>Axis</b>: an opposition" not in page
    assert "<b>Axis</b>: an opposition" in html_report("Down", made_up(), {}, 0, 40)


def test_clusters_of_the_exact_loss(texts):
    loss = trajectories(texts, "loss")
    page = html_report("Loss", texts, {"loss": (loss, cluster_directions(loss, 10, 3))}, 200, 40)
    assert "<summary>Exact loss: " in page


def test_a_page_that_cannot_be_short_enough(texts):
    with pytest.raises(ValueError, match="raise limit"):
        html_report("A", texts, clustered(texts), 200, 40, limit=1000)


@pytest.mark.parametrize(
    "plateau, window, message", [(200, 0, "window=0"), (np.nan, 40, "plateau=nan"), (np.inf, 40, "plateau=inf")]
)
def test_what_is_no_step(texts, plateau, window, message):
    with pytest.raises(ValueError, match=message):
        html_report("A", texts, {}, plateau, window)


def test_no_whole_projection(texts):
    with pytest.raises(ValueError, match="lacks movement"):
        html_report("A", texts.drop_vars("movement"), {}, 200, 40)


def test_clusters_of_other_tokens(texts):
    with pytest.raises(ValueError, match="of 40 tokens, the projection of 80"):
        html_report("A", texts, clustered(texts.isel(token=slice(40, 80))), 200, 40)


def test_clusters_along_directions_without_curves(texts):
    curves, clusters = clustered(texts)["paper"]
    with pytest.raises(ValueError, match="of which there are no curves"):
        html_report("A", texts, {"paper": (curves.isel(direction=[1, 2]), clusters)}, 200, 40)


def test_tokens_of_latex_and_of_html_are_shown_as_they_are():
    from functools import partial

    from polca.analysis.findings import find_findings
    from polca.analysis.labels import projection_tokens
    from polca.analysis.named_axes import named_axes
    from polca.show.findings_section import findings_section, plain_examples

    rng = np.random.default_rng(0)
    steps = np.arange(0, 210, 10)
    kind = (np.arange(200) % 4 == 0).astype(int)
    at = np.array([40, 150])[kind] + rng.normal(0, 3, 200)
    loss = 0.3 + 2 / (1 + np.exp((steps[:, None] - at) / 5))
    pull = np.gradient(loss, axis=0)[:, :, None] * rng.normal(size=(2, 4))[kind] + 0.01 * rng.normal(size=(21, 200, 4))
    dims = ("step", "token", "direction")
    target = ("token", np.array(["$\\frac$", "<b>"])[kind])
    coords = {"step": steps, "interval": steps[:-1], "token": np.arange(200), "direction": np.arange(4)}
    made = xr.Dataset({"gradient": (dims, pull), "loss": (dims[:2], loss)}, coords | {"target": target})
    found = find_findings(made, named_axes(made), None, plateau=130, window=20)
    assert found and "$" in found[0].name
    page = findings_section(made, found, partial(plain_examples, projection_tokens(made), made["loss"]))
    assert "&lt;b&gt;" in page and '<b>"' not in page
