// Where require.js finds the widgets' code: in this site.
require.config({paths: {anywidget: document.documentElement.dataset.content_root + "_static/vendor/anywidget"}});
