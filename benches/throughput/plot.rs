//! The pictures: for each dimension CPU time per event and events per second over its values, by gnuplot, as SVG.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::growth::{Dimension, Growth, Row};
use crate::load::Report;

/// White ground, so that it can be read in GitHub's dark mode, too.
const STYLE: &str = r##"
set encoding utf8
set terminal svg size 900,280 font "Helvetica,Arial,sans-serif,13" background "#ffffff"
set multiplot layout 1,2 margins 0.075,0.985,0.2,0.87 spacing 0.09,0
set border 3 linecolor rgb "#57606a"
set grid ytics linetype 1 linecolor rgb "#d8dee4" linewidth 1
set tics nomirror scale 0.5 textcolor rgb "#24292f"
set xlabel textcolor rgb "#57606a" offset 0,0.3
set key at graph 1.02,1.145 right top horizontal samplen 1.5 width -3 textcolor rgb "#57606a"
set logscale x
"##;

/// One of a picture's two panels.
struct Panel {
    title: &'static str,
    figure: fn(&Report) -> f64,
    color: &'static str,
}

const PANELS: [Panel; 2] = [
    Panel { title: "CPU time per event, µs", figure: |report| report.cpu_micros, color: "#0550ae" },
    Panel { title: "Thousand events a second", figure: |report| report.per_second / 1000.0, color: "#bc4c00" },
];

pub fn draw(growth: &Growth, folder: &Path) {
    let svg = folder.join(growth.dimension.name()).with_extension("svg");
    let panels: String = PANELS.iter().map(|panel| growth.panel(panel)).collect();
    let script = format!("set output '{}'\n{STYLE}{panels}", svg.display());
    let gnuplot = Command::new("gnuplot").arg("-").stdin(Stdio::piped()).spawn();
    let mut gnuplot = gnuplot.unwrap_or_else(|e| panic!("gnuplot: {e}; run scripts/ensure.sh gnuplot"));
    let mut stdin = gnuplot.stdin.take().expect("a pipe");
    stdin.write_all(script.as_bytes()).expect("gnuplot reads");
    drop(stdin);
    assert!(gnuplot.wait().expect("a child").success(), "gnuplot has said why");
}

impl Growth {
    fn panel(&self, panel: &Panel) -> String {
        let Panel { title, figure, color } = panel;
        let figures = |row: &Row| [figure(&row.median), figure(&row.lower), figure(&row.upper)];
        let line = |row: &Row| {
            let [median, lower, upper] = figures(row);
            format!("{} {median} {lower} {upper}\n", self.place(row.value))
        };
        let data: String = self.rows.iter().map(line).collect();
        let tics: Vec<String> = self
            .rows
            .iter()
            .map(|row| format!("{:?} {}", self.dimension.label(row.value), self.place(row.value)))
            .collect();
        let (first, last) = (self.place(self.rows[0].value), self.place(self.rows[self.rows.len() - 1].value));
        let room = (last / first).powf(0.05);
        let direct = self.direct.as_ref().map(|report| {
            let direct = figure(report);
            format!(", {direct} with lines linewidth 1.5 dashtype 2 linecolor rgb '#57606a' title 'direct way'")
        });
        format!(
            "set label 1 {title:?} at graph 0,1.09 left textcolor rgb '#24292f'\nset xlabel {:?}\nset xtics ({})\nset xrange [{}:{}]\n{}\n$data << END\n{data}END\n\
             plot {} $data using 1:2:3:4 with yerrorbars pointtype 7 pointsize 0.5 linewidth 1 linecolor rgb '{color}' notitle, \
             $data using 1:2 with lines linewidth 2 linecolor rgb '{color}' notitle{}\n",
            self.dimension.unit(),
            tics.join(", "),
            first / room,
            last * room,
            self.y(),
            self.band(figures(self.usual())[0]),
            direct.unwrap_or_default(),
        )
    }

    /// From 0, but for bodies: there a thousandfold is expected.
    fn y(&self) -> String {
        match self.dimension {
            Dimension::Body => "set logscale y\nset yrange [*:*]".to_owned(),
            _ => "unset logscale y\nset yrange [0:*]".to_owned(),
        }
    }

    /// Where cost should not grow, what is within 10 % of the usual.
    fn band(&self, usual: f64) -> String {
        if self.dimension == Dimension::Body {
            return String::new();
        }
        format!(
            "'+' using 1:({}):({}) with filledcurves fillcolor rgb '#eaeef2' title '± 10 %',",
            usual * 0.9,
            usual * 1.1
        )
    }

    /// Where a value is on a logarithmic axis: 0 a decade before the next.
    fn place(&self, value: f64) -> f64 {
        let next = self.rows.get(1).map_or(1.0, |row| row.value);
        if value == 0.0 { next / 10.0 } else { value }
    }
}
