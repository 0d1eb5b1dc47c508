package packfile

import "github.com/klauspost/compress/zstd"

// DecodedLen returns how many bytes the payload says that it decodes to: the content
// size in the header of its first zstd frame. That is all of a frame of many chunks,
// whose lengths a reader of one of them does not know.
func (v *View) DecodedLen() (int, error) {
	var h zstd.Header
	if err := h.Decode(v.payload); err != nil {
		return 0, corruptf("zstd header of a frame: %v", err)
	}
	if !h.HasFCS || h.FrameContentSize > MaxFrame {
		return 0, corruptf("frame does not say how long it is, or %d bytes", h.FrameContentSize)
	}
	return int(h.FrameContentSize), nil
}
