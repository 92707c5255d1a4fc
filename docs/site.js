// What the theme adds once a page is shown, for those who listen or use the keyboard: names of the code blocks' buttons, and
// whatever scrolls sideways in the order of the tab key.
new MutationObserver(() => {
  document.querySelectorAll(".md-code__nav").forEach((nav, i) => {
    const name = `Code block ${i + 1}`;
    if (nav.getAttribute("aria-label") !== name) nav.setAttribute("aria-label", name);
  });
  document.querySelectorAll("pre > code, .md-typeset__scrollwrap").forEach((each) => (each.tabIndex = 0));
}).observe(document.documentElement, { childList: true, subtree: true });
