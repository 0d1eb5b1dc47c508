package faultfs

import "slices"

const (
	pageSize   = 4096
	sectorSize = 512
)

// content is the bytes of a file. Pages never change once they are in one, so that clones
// share them; a page that is nil is zeros.
type content struct {
	size  int64
	pages []*[pageSize]byte
}

func (c *content) clone() content { return content{c.size, slices.Clone(c.pages)} }

// page returns page n for writing.
func (c *content) page(n int64) *[pageSize]byte {
	for int64(len(c.pages)) <= n {
		c.pages = append(c.pages, nil)
	}
	p := new([pageSize]byte)
	if c.pages[n] != nil {
		*p = *c.pages[n]
	}
	c.pages[n] = p
	return p
}

func (c *content) write(off int64, data []byte) {
	c.size = max(c.size, off+int64(len(data)))
	for len(data) > 0 {
		n := copy(c.page(off / pageSize)[off%pageSize:], data)
		data, off = data[n:], off+int64(n)
	}
}

func (c *content) truncate(size int64) {
	if size < c.size {
		if n := (size + pageSize - 1) / pageSize; n < int64(len(c.pages)) {
			c.pages = slices.Clip(c.pages[:n])
		}
		if at := size % pageSize; at != 0 && size/pageSize < int64(len(c.pages)) {
			clear(c.page(size / pageSize)[at:])
		}
	}
	c.size = size
}

// read fills p from off on, up to the end, and returns how much that was.
func (c *content) read(p []byte, off int64) int {
	p = p[:max(0, min(int64(len(p)), c.size-off))]
	for done := 0; done < len(p); {
		n, at := (off+int64(done))/pageSize, (off+int64(done))%pageSize
		part := p[done:min(len(p), done+pageSize-int(at))]
		if n < int64(len(c.pages)) && c.pages[n] != nil {
			copy(part, c.pages[n][at:])
		} else {
			clear(part)
		}
		done += len(part)
	}
	return len(p)
}
