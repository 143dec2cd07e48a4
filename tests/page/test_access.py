"""Who reads the page with a keyboard, a screen reader or a telephone."""

import pytest

pytestmark = pytest.mark.slow

TABS = ("Ask", "Compare two", "Batch")
# Every control that can be seen, and whether the tab key has reached it.
CONTROLS = """() => [...document.querySelectorAll(
    "button, a[href], input:not([type=hidden]), textarea, select, [tabindex='0']"
)].filter((e) => e.checkVisibility({ visibilityProperty: true }) && !e.disabled
    && e.getAttribute("tabindex") !== "-1" && e.type !== "file" && !e.closest("[inert]"))"""


def axe(page) -> list[str]:
    """What axe-core finds against WCAG 2 A and AA."""
    from axe_playwright_python.sync_playwright import Axe

    rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]
    found = Axe().run(page, options={"runOnly": {"type": "tag", "values": rules}})
    assert len(found.response["passes"]) > 10  # it has looked
    return [
        f"{v['id']}: {node['html'][:200]}"
        for v in found.response["violations"]
        for node in v["nodes"]
    ]


def asked(visitor, micrograph):
    visitor.drop_and_wait(micrograph)
    visitor.ask("What is bright here?")
    for name in ("A region to ask about", "Measure sizes", "All ten questions"):
        visitor.page.get_by_role("button", name=name).click()
    return visitor.page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing(visit, micrograph, scheme):
    pytest.importorskip("axe_playwright_python", reason="needs axe-playwright-python")
    page = asked(visit(scheme=scheme), micrograph)
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, dark.strip("rgba()").split(",")[:3])) < 384) == (scheme == "dark")
    found = {}
    for tab in TABS:
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(300)
        found |= {f"{tab}: {line}": None for line in axe(page)}
    assert list(found) == []


def test_the_tab_key_reaches_every_control_in_order(visit, micrograph):
    page = asked(visit(), micrograph)
    page.evaluate(f"window.controls = ({CONTROLS})(); window.reached = []")
    page.evaluate("document.activeElement.blur(); window.scrollTo(0, 0)")
    total = page.evaluate("window.controls.length")
    assert total > 25
    page.locator("h1").click()
    for _ in range(total + 30):
        page.keyboard.press("Tab")
        page.evaluate("window.reached.push(document.activeElement)")
    missed = page.evaluate(
        """() => window.controls.filter((e) => !window.reached.includes(e)
            && !(e.type === "radio" && window.reached.some((r) => r.name === e.name)))
            .map((e) => e.outerHTML.slice(0, 200))"""
    )
    assert missed == []
    upward = page.evaluate(
        """() => {
            const order = window.reached.filter((e) => window.controls.includes(e));
            return order.slice(1, window.controls.length).filter((e, i) =>
                order[i].compareDocumentPosition(e) & Node.DOCUMENT_POSITION_PRECEDING).length;
        }"""
    )
    assert upward <= 1  # from the last to the first


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_telephone_scrolls_up_and_down_only(visit, micrograph, scheme):
    page = asked(visit(width=390, scheme=scheme), micrograph)
    for tab in TABS:
        page.get_by_role("tab", name=tab).click()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        wide = page.evaluate(
            """() => [...document.querySelectorAll("button, input, textarea, img, p, dl")]
                .filter((e) => e.checkVisibility() && e.getBoundingClientRect().right > 391
                    && !e.closest(".mv-spoken")).map((e) => e.outerHTML.slice(0, 100))"""
        )
        assert wide == []


def test_the_link_beside_an_answer_leads_to_what_it_means(visit, micrograph):
    page = visit().page
    page.get_by_role("link", name="What this means").click()
    page.wait_for_function(
        "Math.abs(document.querySelector('#trust').getBoundingClientRect().top) < 900"
    )
    assert "AUROC" in page.locator("#trust").inner_text()
