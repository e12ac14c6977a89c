// Package shape holds no code but tests: they keep the rooms and doors of the tree as the architecture draws them.
package shape
