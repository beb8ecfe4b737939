"use strict";
(function () {
  var place = document.getElementById("sweep");
  if (!place) { return; }
  var found = JSON.parse(place.textContent);
  var range = document.getElementById("threshold");
  var choice = document.getElementById("which");
  var back = document.getElementById("stored");
  var mark = document.getElementById("mark");

  function ratio(part, whole) { return whole ? part / whole : 0; }
  function put(id, text) { document.getElementById(id).textContent = text; }
  function grouped(count) { return count.toLocaleString("en-US"); }
  function chosen() { return choice.value === "all" ? found.all : found.labels[Number(choice.value)]; }

  function show(count, text) {
    put("n-precision", ratio(count.hits, count.calls).toFixed(4));
    put("n-recall", ratio(count.hits, chosen().support).toFixed(4));
    put("n-f1", ratio(2 * count.hits, count.calls + chosen().support).toFixed(4));
    var all = choice.value === "all";
    put("t-share", all ? "labels a row" : "share of the rows");
    put("n-share", all ? ratio(count.calls, found.rows).toFixed(2) : (100 * ratio(count.calls, found.rows)).toFixed(1) + " %");
    document.getElementById("d-exact").hidden = !all;
    if (all) { put("n-exact", ratio(count.exact, found.rows).toFixed(4)); }
    put("at", text);
    range.setAttribute("aria-valuetext", text);
  }
  function moved() {
    var step = Number(range.value);
    if (found.kind === "single") {
      put("n-share", (100 * ratio(found.answered[step], found.rows)).toFixed(1) + " %");
      put("n-accuracy", found.answered[step] ? ratio(found.right[step], found.answered[step]).toFixed(4) : "-");
      put("n-person", grouped(found.rows - found.answered[step]));
      put("at", (step / 100).toFixed(2));
      return;
    }
    var label = chosen();
    show({ calls: label.calls[step], hits: label.hits[step], exact: label.exact ? label.exact[step] : 0 },
      (step / 100).toFixed(2));
  }
  function marked(cut) {
    mark.hidden = cut === null || cut > 1;
    if (!mark.hidden) { mark.style.left = "calc(8px + (100% - 16px) * " + cut + " - 1px)"; }
  }
  function restored() {
    var stored = chosen().stored, cut = stored.threshold;
    marked(cut);
    range.value = String(Math.round(100 * (cut === null ? 0.5 : cut)));
    show(stored, cut === null ? "as stored, one for each label" : "as stored, " + String(Number(cut.toFixed(4))));
  }
  range.addEventListener("input", moved);
  if (found.kind === "single") {
    marked(found.stored);
    range.value = "0";
    moved();
  } else {
    choice.addEventListener("change", restored);
    back.addEventListener("click", restored);
    restored();
  }
  document.getElementById("try").hidden = false;
})();
