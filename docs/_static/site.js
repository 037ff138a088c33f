// The sidebar shows where the page is; boxes whose contents are wider get a shadow at the edge; and a figure that a
// narrow screen would shrink to half scrolls instead.
function follow() {
  const box = document.querySelector('.sidebar-scroll');
  const here = document.querySelector('.sidebar-tree .current-page');
  if (box && here) box.scrollTop = here.offsetTop - box.clientHeight / 3;
}
addEventListener('DOMContentLoaded', follow);
function mark() {
  for (const box of document.querySelectorAll('[role=main] :is(div.highlight pre, div.cell_output pre, .table-wrapper)'))
    box.classList.toggle('scrolls', box.scrollWidth > box.clientWidth + 2);
}
addEventListener('load', () => {
  for (const img of document.querySelectorAll('.content img[alt^="Figure"]')) {
    if (img.style.width || img.hasAttribute('width') || img.naturalWidth <= 1.7 * img.clientWidth) continue;
    const box = document.createElement('div');
    box.className = 'figure-scroll';
    img.replaceWith(box);
    box.append(img);
  }
  mark();
  follow(); // again, since styles that came late have moved it
});
addEventListener('resize', mark);
