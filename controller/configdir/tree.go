package configdir

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// maxFile bounds what is read of one file, in bytes.
const maxFile = 16 << 20

// rawFile is a file as it was read; err is set instead of data when it could not be.
type rawFile struct {
	path    string // relative to the directory
	data    string
	overlay bool
	err     error
}

// walkDirs calls f for the directory, each sub-directory whose name has no dot in front, and the overlay directory.
func walkDirs(root string, f func(dir string) error) error {
	return filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		switch {
		case err != nil && path != root && errors.Is(err, fs.ErrNotExist):
			return nil // removed while we walked
		case err != nil:
			return fmt.Errorf("read directory %s: %w", path, err)
		case !e.IsDir():
			return nil
		case path != root && strings.HasPrefix(e.Name(), ".") && path != filepath.Join(root, StatusDir):
			return fs.SkipDir
		}
		return f(path)
	})
}

func readTree(root string) ([]rawFile, error) {
	var files []rawFile
	err := walkDirs(root, func(dir string) error {
		entries, err := os.ReadDir(dir)
		if err != nil && dir != root && errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return fmt.Errorf("read directory %s: %w", dir, err)
		}
		for _, e := range entries {
			ext := filepath.Ext(e.Name())
			if e.IsDir() || strings.HasPrefix(e.Name(), ".") || (ext != ".yaml" && ext != ".yml" && ext != ".json") {
				continue
			}
			path := filepath.Join(dir, e.Name())
			rel, err := filepath.Rel(root, path)
			if err != nil {
				return fmt.Errorf("read file %s: %w", path, err)
			}
			data, err := readFile(path)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			overlay := strings.HasPrefix(rel, StatusDir+string(filepath.Separator))
			files = append(files, rawFile{path: rel, data: data, overlay: overlay, err: err})
		}
		return nil
	})
	slices.SortFunc(files, func(a, b rawFile) int { return strings.Compare(a.path, b.path) })
	return files, err
}

func readFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return "", err
	}
	if len(data) > maxFile {
		return "", fmt.Errorf("read file %s: larger than %d bytes", path, maxFile)
	}
	return string(data), nil
}
