// What scrolls sideways can be reached with the keyboard; a page opened from a disk cannot read others for the search.
const reachable = () => {
    for (const box of document.querySelectorAll("pre, .course-wide, .table-wrapper")) {
        if (box.scrollWidth > box.clientWidth) box.tabIndex = 0
        else box.removeAttribute("tabindex")
    }
}
addEventListener("load", reachable)
addEventListener("resize", reachable)
for (const caption of document.querySelectorAll(".caption[role=heading]")) caption.ariaLevel = 2  // as screen readers want it
if (location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false
