// Sliders above one picture, as explore() shows them: live in a notebook, or over frames that were drawn before.
// On a page every <figure class="explore"> that holds frames starts by itself, from file:// too. A notebook calls
// explorer.render(). frames.py writes the markup.
const explorer = (() => {
    const PATIENCE = 1000  // milliseconds without an answer; then the line says so
    const BUSY = "The kernel is busy or new: wait for it, or run this cell."
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
        // Notebook and slides take arrow keys for themselves, so the sliders answer keys on their own.
        const step = {ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, PageUp: 5, PageDown: -5,
                      Home: -Infinity, End: Infinity}
        figure.addEventListener("keydown", event => {
            const input = event.target
            if (!(event.key in step) || !inputs.includes(input) || event.ctrlKey || event.metaKey || event.altKey) return
            event.preventDefault()
            event.stopPropagation()
            const place = Math.min(Math.max(+input.value + step[event.key], 0), +input.max)
            if (place === +input.value) return
            input.value = place
            input.dispatchEvent(new Event("input", {bubbles: true}))
        })
        return {
            inputs, places,
            place: wanted => { inputs.forEach((input, k) => { input.value = wanted[k] }); read() },
            say: text => { if (line.textContent !== text) line.textContent = text },
            wait: yes => { figure.toggleAttribute("data-waiting", yes) },
            show: (url, text) => {
                image.src = url
                image.alt = text
                if (sentence.textContent !== text) sentence.textContent = text
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
            view.wait(!found)
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
        let timer, url, lost = false, turn = 0
        const waiting = yes => {
            view.wait(yes)
            clearTimeout(timer)
            if (yes) timer = setTimeout(() => { if (!gone()) view.say(BUSY) }, PATIENCE)
        }
        const gone = () => lost || !!el.closest(".jupyter-widgets-disconnected")
        const view = wire(figure, values, places => {
            model.set("places", places)
            model.save_changes()
            waiting(true)
            if (`${model.get("shown").asked}` === `${places}`) answer()  // moved away and back: nothing new for a kernel
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
        const status = (_, now) => {
            if (!/restarting|terminating|dead/.test(now)) return
            lost = true
            stop()
        }
        const kernel = model.widget_manager?.kernel
        kernel?.statusChanged?.connect(status)
        view.place(model.get("shown").asked)
        const follow = () => {  // another view of the same sliders was moved
            if (`${model.get("places")}` === `${view.places()}`) return
            view.place(model.get("places"))
            waiting(true)
        }
        model.on("change:shown", answer)
        model.on("change:places", follow)
        answer()
        figure.dataset.ready = "yes"
        return () => {
            watch.disconnect()
            kernel?.statusChanged?.disconnect(status)
            clearTimeout(timer)
            model.off("change:shown", answer)
            model.off("change:places", follow)
            if (url) URL.revokeObjectURL(url)
        }
    }

    document.querySelectorAll("figure.explore[data-frames]").forEach(fromFrames)
    return {render}
})()
