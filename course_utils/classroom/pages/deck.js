// A deck: formulas are set, every slide is made to fit, then reveal.js shows the first one. Nothing is fetched.

const SMALLEST = 0.5, STEP = 0.04  // of the size of the letters

function overflows(slide) {
  const box = slide.getBoundingClientRect(), bottom = box.bottom - 36, right = box.right - 20
  return [...slide.querySelectorAll(":scope > :not(aside), :scope > :not(aside) *")].some(part => {
    const inside = part.getBoundingClientRect()
    return inside.width && (inside.bottom > bottom + 1 || inside.right > right + 1)
  })
}

function fit() {
  for (const slide of document.querySelectorAll(".slides section:not(:has(section))"))
    for (let size = 1; size > SMALLEST && overflows(slide); size -= STEP) slide.style.fontSize = `${size - STEP}em`
}

window.MathJax = {
  tex: {inlineMath: [["$", "$"]], displayMath: [["$$", "$$"]], tags: "none"},
  svg: {fontCache: "local"},  // the speaker's window gets formulas that need nothing of this page
  options: {enableMenu: false},
  startup: {
    async pageReady() {
      await MathJax.startup.defaultPageReady()
      await document.fonts.ready
      await Promise.all([...document.images].map(image => image.decode().catch(() => {})))
      fit()
      document.body.classList.remove("measuring")
      await Reveal.initialize({
        width: 1280, height: 720, margin: 0, center: false, display: "flex", hash: true, transition: "none",
        slideNumber: "c/t", plugins: [RevealNotes],
      })
      document.body.classList.add("ready")
    },
  },
}

// Arrow keys move a slider that has the focus. Escape gives them back to the deck, as does every change of slide.
// PageUp and PageDown, which a presenter's remote sends, always move the deck.
document.addEventListener("keydown", event => {
  const slider = document.activeElement
  if (!slider?.matches("input[type=range]")) return
  if (event.key === "Escape") slider.blur()
  else if (event.key === "PageDown") Reveal.next()
  else if (event.key === "PageUp") Reveal.prev()
  else return
  event.preventDefault()
  event.stopPropagation()
}, {capture: true})
document.addEventListener("DOMContentLoaded", () => Reveal.on("slidechanged", () => document.activeElement?.blur()))
