// Lessons come first in the results of the search, then pages about the package, then single names in it.
var Scorer = {
  score: ([docName, , , , score]) => score + (docName.startsWith('lessons/') ? 12 : docName === 'glossary' ? 18 : 0),
  objNameMatch: 6,
  objPartialMatch: 2,
  objPrio: { 0: 4, 1: 2, 2: -5 },
  objPrioDefault: 0,
  title: 15,
  partialTitle: 9,
  term: 5,
  partialTerm: 2,
};
