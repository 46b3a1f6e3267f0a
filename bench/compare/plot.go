package main

import (
	"encoding/xml"
	"fmt"
	"math"
	"strings"
)

// The picture, in pixels: a row of two panels for each workload, throughput on the left and p99 on the right.
//
//	title
//	legend
//	┌ writes: ops/s ┐ ┌ writes: p99 ms ┐
//	└ 64  256  1024 ┘ └ 64  256  1024  ┘
//	┌ reads …
const (
	plotWidth  = 1000
	panelWidth = 470
	// panelHeight is a row's; the axes leave the margins.
	panelHeight                                     = 290
	headHeight                                      = 104
	marginLeft, marginTop, marginRight, marginUnder = 62.0, 38.0, 10.0, 44.0
	gridLines                                       = 5
)

// plotColors are told apart by people with any kind of colour blindness, and in grey.
var plotColors = map[string]string{nameEtcd: "#7d9cc0", nameRedis: "#44546a", nameOstraka: "#d2601a"}

// bar is one value of a panel with its range.
type bar struct {
	system string
	spread
}

// panel is a group of bars for each number of callers.
type panel struct {
	title  string
	format func(float64) string
	groups []barGroup
}

type barGroup struct {
	name string
	bars []bar
}

// drawPlot returns the report's figures as SVG. Bars are medians, the lines on them ranges.
func drawPlot(r *report) []byte {
	var panels []panel
	for _, w := range r.Settings.Workloads {
		panels = append(panels,
			panelOf(r, w, w+": operations a second", compact, func(s summary) spread { return s.OpsPerSecond }),
			panelOf(r, w, w+": p99 in milliseconds", millis, func(s summary) spread { return s.P99 }))
	}
	var b strings.Builder
	height := headHeight + panelHeight*len(r.Settings.Workloads) + 10
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" viewBox="0 0 %d %d" font-family="sans-serif" font-size="12" fill="#222">`+"\n",
		plotWidth, height, plotWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", plotWidth, height)
	text(&b, 20, 28, "start", 17, heading(r))
	text(&b, 20, 48, "start", 12, fmt.Sprintf("%s · %d cores, one disk (%s, fdatasync %.0f µs), client on the same machine · keys %d B, values %d B · medians of %d rounds of %gs, lines: range",
		r.Began.Format("2006-01-02"), r.Machine.Cores, r.Machine.FileSystem, r.Machine.SyncP50, r.Settings.KeySize, r.Settings.ValueSize, r.Settings.Rounds, r.Settings.DurationSeconds))
	legend(&b, r)
	for i, p := range panels {
		fmt.Fprintf(&b, `<g transform="translate(%d %d)">`+"\n", 20+i%2*(panelWidth+20), headHeight+i/2*panelHeight)
		p.draw(&b)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	return []byte(b.String())
}

func heading(r *report) string {
	var names []string
	for _, s := range r.Systems {
		names = append(names, title(s.Name))
	}
	return fmt.Sprintf("%s: %d nodes each, writes replicated and synced before the answer, linearizable reads", strings.Join(names, ", "), r.Settings.Nodes)
}

// legend names the systems, and under them where one promises less than the heading says.
func legend(b *strings.Builder, r *report) {
	x := 20.0
	var caveats []string
	for _, s := range r.Systems {
		name := title(s.Name) + " " + firstWord(s.Version)
		if s.Caveat != "" {
			name += "*"
			caveats = append(caveats, "* "+title(s.Name)+": "+s.Caveat)
		}
		fmt.Fprintf(b, `<rect x="%.0f" y="60" width="12" height="12" fill="%s"/>`+"\n", x, plotColors[s.Name])
		text(b, x+18, 70, "start", 12, name)
		x += 50 + 7*float64(len(name))
	}
	text(b, 20, 90, "start", 12, strings.Join(caveats, " · "))
}

func firstWord(s string) string {
	word, _, _ := strings.Cut(s, " ")
	return strings.TrimRight(word, ",")
}

func panelOf(r *report, workload, title string, format func(float64) string, value func(summary) spread) panel {
	p := panel{title: title, format: format}
	for _, callers := range r.Settings.Callers {
		g := barGroup{name: fmt.Sprintf("%d callers", callers)}
		for _, s := range r.Summaries {
			if s.cell == (cell{Workload: workload, Callers: callers}) {
				g.bars = append(g.bars, bar{s.System, value(s)})
			}
		}
		p.groups = append(p.groups, g)
	}
	return p
}

// draw puts the panel at the origin.
func (p panel) draw(b *strings.Builder) {
	const width, height = panelWidth - marginLeft - marginRight, panelHeight - marginTop - marginUnder
	highest := 0.0
	for _, g := range p.groups {
		for _, v := range g.bars {
			highest = max(highest, v.Max)
		}
	}
	top := niceCeiling(highest * 1.08) // room for the numbers on the bars
	y := func(v float64) float64 { return marginTop + height*(1-v/top) }

	text(b, marginLeft, 18, "start", 13, p.title)
	for i := range gridLines + 1 {
		v := top * float64(i) / gridLines
		fmt.Fprintf(b, `<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="#ddd"/>`+"\n", marginLeft, marginLeft+width, y(v), y(v))
		text(b, marginLeft-6, y(v)+4, "end", 11, axisLabel(v))
	}
	slot := width / float64(len(p.groups))
	for i, g := range p.groups {
		left := marginLeft + slot*float64(i)
		text(b, left+slot/2, marginTop+height+20, "middle", 12, g.name)
		if len(g.bars) == 0 {
			continue
		}
		thick := min(slot*0.8/float64(len(g.bars)), 44)
		at := left + (slot-thick*float64(len(g.bars)))/2
		for _, v := range g.bars {
			middle := at + thick/2
			fmt.Fprintf(b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`+"\n", at+1, y(v.Median), thick-2, max(0, y(0)-y(v.Median)), plotColors[v.system])
			fmt.Fprintf(b, `<line x1="%.1f" x2="%.1f" y1="%.1f" y2="%.1f" stroke="#111"/>`+"\n", middle, middle, y(v.Min), y(v.Max))
			text(b, middle, y(v.Max)-4, "middle", 10, p.format(v.Median))
			at += thick
		}
	}
}

func text(b *strings.Builder, x, y float64, anchor string, size int, s string) {
	fmt.Fprintf(b, `<text x="%.1f" y="%.1f" text-anchor="%s" font-size="%d">`, x, y, anchor, size)
	_ = xml.EscapeText(b, []byte(s)) // a Builder takes everything
	b.WriteString("</text>\n")
}

// compact prints a number of operations: 950, 9.5k, 95k.
func compact(v float64) string {
	switch {
	case v < 1000:
		return fmt.Sprintf("%.0f", v)
	case v < 99_950:
		return fmt.Sprintf("%.1fk", v/1000)
	}
	return fmt.Sprintf("%.0fk", v/1000)
}

// axisLabel prints a round number.
func axisLabel(v float64) string {
	if v >= 1000 {
		return fmt.Sprintf("%gk", v/1000)
	}
	return fmt.Sprintf("%.3g", v)
}

// niceCeiling returns the least of 1, 1.5, 2, 2.5, 3, 4, 5, 6, 8 × 10ⁿ at or above a number: a fifth of each is a number
// that is easily read. 1 for nothing.
func niceCeiling(v float64) float64 {
	if v <= 0 {
		return 1
	}
	power := math.Pow(10, math.Floor(math.Log10(v)))
	for _, step := range []float64{1, 1.5, 2, 2.5, 3, 4, 5, 6, 8} {
		if step*power >= v {
			return step * power
		}
	}
	return 10 * power
}
