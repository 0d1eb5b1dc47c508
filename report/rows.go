package report

import (
	"encoding/csv"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/parquet-go/parquet-go"

	"github.com/dedupd/dedupd/narinfo"
)

// A row is a store path as it stands in tables. What is not known is null in Parquet and
// empty in CSV.
type row struct {
	StorePath   string    `parquet:"store_path"`
	Name        string    `parquet:"name"`
	Package     string    `parquet:"pname,dict"`
	Version     string    `parquet:"version,optional"`
	NARHash     string    `parquet:"nar_hash"`
	NARSize     int64     `parquet:"nar_size"`
	WireSize    int64     `parquet:"wire_size"` // of the zstd that dedupd sends
	FileSize    int64     `parquet:"file_size,optional"`
	URL         string    `parquet:"url"` // these three as uploaded
	Compression string    `parquet:"compression,dict"`
	References  []string  `parquet:"references,list"`
	Deriver     string    `parquet:"deriver,optional"`
	Sigs        []string  `parquet:"sigs,list"`
	CA          string    `parquet:"ca,optional"`
	Writer      time.Time `parquet:"writer_started,timestamp(millisecond)"`
	Own         int64     `parquet:"stored_own"`
	Shared      int64     `parquet:"stored_shared"`
}

func newRow(p *Path) row {
	r := row{
		StorePath: p.StorePath.Path(p.StoreDir), Name: p.StorePath.Name(), Package: p.StorePath.Package(), Version: p.StorePath.Version(),
		NARHash: narinfo.NewHash(narinfo.SHA256, p.NarHash[:]).String(), NARSize: int64(p.NarSize), WireSize: p.Wire,
		FileSize: int64(p.FileSize), URL: p.URL, Compression: p.Compression, Deriver: p.Deriver.String(), CA: p.CA,
		Writer: p.Writer, Own: p.Own, Shared: p.Shared,
	}
	for _, ref := range p.References {
		r.References = append(r.References, ref.String())
	}
	for _, sig := range p.Sigs {
		r.Sigs = append(r.Sigs, sig.String())
	}
	return r
}

// A Table is a file that is written path by path.
type Table interface {
	Write(*Path) error
	// Close writes the rest. It does not close the file.
	Close() error
}

// rowGroup is how many rows are in memory at a time: about a kilobyte each.
const rowGroup = 20_000

type parquetTable struct {
	w    *parquet.GenericWriter[row]
	rows int
}

// NewParquet returns a table in Parquet, sorted by package, compressed with zstd.
func NewParquet(w io.Writer) Table {
	return &parquetTable{w: parquet.NewGenericWriter[row](w, parquet.Compression(&parquet.Zstd))}
}

func (t *parquetTable) Write(p *Path) error {
	if _, err := t.w.Write([]row{newRow(p)}); err != nil {
		return err
	}
	if t.rows++; t.rows%rowGroup == 0 {
		return t.w.Flush()
	}
	return nil
}

func (t *parquetTable) Close() error { return t.w.Close() }

type csvTable struct {
	w *csv.Writer
}

// NewCSV returns a table in CSV with a line of names; lists are words in one field.
func NewCSV(w io.Writer) Table {
	t := &csvTable{csv.NewWriter(w)}
	t.w.Write([]string{"store_path", "name", "pname", "version", "nar_hash", "nar_size", "wire_size", "file_size", "url", "compression",
		"references", "deriver", "sigs", "ca", "writer_started", "stored_own", "stored_shared"}) // Close says whether it failed
	return t
}

func (t *csvTable) Write(p *Path) error {
	r := newRow(p)
	fileSize := ""
	if r.FileSize > 0 {
		fileSize = number(r.FileSize)
	}
	return t.w.Write([]string{r.StorePath, r.Name, r.Package, r.Version, r.NARHash, number(r.NARSize), number(r.WireSize), fileSize, r.URL, r.Compression,
		strings.Join(r.References, " "), r.Deriver, strings.Join(r.Sigs, " "), r.CA, r.Writer.Format(time.RFC3339), number(r.Own), number(r.Shared)})
}

func (t *csvTable) Close() error {
	t.w.Flush()
	return t.w.Error()
}

// PackageCSV writes packages as CSV, with a line of names.
type PackageCSV struct{ w *csv.Writer }

// NewPackageCSV returns a table of packages.
func NewPackageCSV(w io.Writer) *PackageCSV {
	t := &PackageCSV{csv.NewWriter(w)}
	t.w.Write([]string{"pname", "paths", "nar_size", "wire_size", "stored_own", "stored_shared", "error", "dedup", "ratio"})
	return t
}

// Write writes a line.
func (t *PackageCSV) Write(p *Package) error {
	return t.w.Write([]string{p.Name, number(p.Paths), number(p.NARBytes), number(p.WireBytes), number(p.Own), number(p.Shared), number(p.Error),
		strconv.FormatFloat(p.Dedup, 'f', 3, 64), strconv.FormatFloat(p.Ratio, 'f', 3, 64)})
}

// Close writes the rest. It does not close the file.
func (t *PackageCSV) Close() error {
	t.w.Flush()
	return t.w.Error()
}

func number(n int64) string { return strconv.FormatInt(n, 10) }
