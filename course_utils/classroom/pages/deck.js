// A deck: formulas are set, every slide is made to fit, then reveal.js shows the first one. Nothing is fetched.

// Letters start large and shrink until the slide fits; below LINES, tables and code may also break their lines.
const LARGEST = {ask: 1.4, table: 1.3, title: 1.2, text: 1.35, code: 1.25, breath: 1.25, question: 1.15}, SMALLEST = 0.4, LINES = 0.72

function overflows(slide) {
  const box = slide.getBoundingClientRect(), bottom = box.bottom - 40, right = box.right - 48
  return [...slide.querySelectorAll(".body *:not(svg *)")].some(part => {
    const inside = part.getBoundingClientRect()
    return inside.width && (inside.bottom > bottom || inside.right > right)
  })
}

function fit(slide) {
  const body = slide.querySelector(".body")
  for (let size = LARGEST[slide.classList[0]] ?? 1; size > SMALLEST; size -= 0.04) {
    body.style.fontSize = `${size}em`
    body.classList.toggle("broken", size < LINES)
    if (!overflows(slide)) break
  }
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
      document.querySelectorAll(".slides section:not(:has(section))").forEach(fit)
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
