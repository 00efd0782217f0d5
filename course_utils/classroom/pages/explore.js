// Sliders above one picture, as explore() shows them: live in a notebook, or over frames that were drawn before.
// On a page every <figure class="explore"> that holds frames starts by itself, from file:// too. A notebook calls
// explorer.render(). frames.py writes the markup.
const explorer = (() => {
    const PATIENCE = 1000  // milliseconds without an answer; then the line says so
    const BUSY = "The kernel is busy or gone: the picture follows when it answers."
    const GONE = "Run this cell to move the sliders."

    // What both kinds share. `moved(places)` is called after each move; returns what they need.
    const wire = (figure, values, moved) => {
        const find = name => figure.querySelector(`.explore-${name}`)
        const inputs = [...figure.querySelectorAll("input")], outputs = [...figure.querySelectorAll("output")]
        const [sentence, line, image] = [find("sentence"), find("line"), figure.querySelector("img")]
        const read = () => inputs.forEach((input, k) => {
            const text = values[k][input.value]
            outputs[k].value = text
            input.setAttribute("aria-valuetext", text)
        })
        const places = () => inputs.map(input => +input.value)
        inputs.forEach(input => input.addEventListener("input", () => { read(); moved(places()) }))
        return {
            inputs, places,
            place: wanted => { inputs.forEach((input, k) => { input.value = wanted[k] }); read() },
            say: text => { if (line.textContent !== text) line.textContent = text },
            wait: yes => { figure.toggleAttribute("data-waiting", yes) },
            show: (url, text) => {
                image.src = url
                image.alt = sentence.textContent = text
                sentence.style.minHeight = `${sentence.offsetHeight}px`  // it grows and never shrinks: nothing jumps
            },
        }
    }

    const decoded = url => {
        const picture = new Image()
        picture.src = url
        return picture.decode().then(() => picture)
    }

    // Pictures that lie beside the page.
    const fromFrames = figure => {
        const {values, start, frames} = JSON.parse(figure.querySelector("script").textContent)
        const folder = figure.querySelector("img").getAttribute("src").replace(/[^/]*$/, "")
        const loaded = new Map()  // file -> promise of its decoded picture
        const load = file => {
            if (!loaded.has(file)) loaded.set(file, decoded(folder + file).catch(() => { loaded.delete(file) }))
            return loaded.get(file)
        }
        const frame = places => frames[places.reduce((sum, place, k) => sum * values[k].length + place, 0)]
        const neighbours = () => view.places().forEach((place, k, places) => {
            for (const next of [place - 1, place + 1]) {
                if (next in values[k]) load(frame(places.map((other, i) => (i === k ? next : other)))[0])
            }
        })
        let turn = 0
        const view = wire(figure, values, async places => {
            const [file, text] = frame(places), mine = ++turn
            view.wait(true)
            const found = await load(file)
            if (mine !== turn) return  // the slider has moved on
            view.wait(false)
            view.say(found ? "" : "This picture cannot be loaded.")
            if (found) view.show(folder + file, text)
            neighbours()
        })
        for (const kind of ["focusin", "pointerenter"]) figure.addEventListener(kind, neighbours, {once: true})
        view.place(start)  // a reload keeps no old position
        view.say("")
        figure.querySelector(".explore-controls").hidden = false
        figure.dataset.ready = "yes"
    }

    // Pictures that a kernel draws: `places` is what the reader wants, `shown` the answer, always whole.
    const render = ({model, el}) => {
        el.innerHTML = model.get("html")
        const figure = el.querySelector("figure"), {values} = JSON.parse(figure.querySelector("script").textContent)
        let timer, url, turn = 0
        const waiting = yes => {
            view.wait(yes)
            clearTimeout(timer)
            if (yes) timer = setTimeout(() => { if (!gone()) view.say(BUSY) }, PATIENCE)
        }
        const gone = () => !!el.closest(".jupyter-widgets-disconnected")
        const view = wire(figure, values, places => {
            model.set("places", places)
            model.save_changes()
            waiting(true)
        })
        const answer = async () => {
            const {places, asked, sentence, error, png} = model.get("shown"), mine = ++turn
            const next = URL.createObjectURL(new Blob([png], {type: "image/png"}))
            await decoded(next)
            if (mine !== turn) return URL.revokeObjectURL(next)
            view.show(next, sentence)
            if (url) URL.revokeObjectURL(url)
            url = next
            if (gone()) return stop()
            if (`${asked}` !== `${view.places()}`) return  // an older answer: a true picture, and still waiting
            waiting(false)
            view.say(error && `No picture for these values, so the one before stays: ${error}`)
            view.wait(`${asked}` !== `${places}`)  // after an error the readout is not what the picture shows
        }
        const stop = () => {
            waiting(false)
            view.place(model.get("shown").places)
            view.inputs.forEach(input => { input.disabled = true })
            view.say(GONE)
        }
        const watch = new MutationObserver(() => { if (gone()) stop() })
        watch.observe(el, {attributeFilter: ["class"]})
        view.place(model.get("shown").asked)
        model.on("change:shown", answer)
        answer()
        figure.dataset.ready = "yes"
        return () => {
            watch.disconnect()
            clearTimeout(timer)
            model.off("change:shown", answer)
            if (url) URL.revokeObjectURL(url)
        }
    }

    document.querySelectorAll("figure.explore[data-frames]").forEach(fromFrames)
    return {render}
})()
