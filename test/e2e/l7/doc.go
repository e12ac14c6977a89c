// Package l7 observes the rows of test/rows on a real cluster, the one named by NAME, after the tests of test/e2e. The tests share one
// fixture and run one after the other.
package l7
