import java.io.BufferedReader;
import java.io.IOException;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.List;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.Path;
import org.apache.hadoop.hbase.Cell;
import org.apache.hadoop.hbase.CellUtil;
import org.apache.hadoop.hbase.HBaseConfiguration;
import org.apache.hadoop.hbase.fs.HFileSystem;
import org.apache.hadoop.hbase.io.hfile.CacheConfig;
import org.apache.hadoop.hbase.io.hfile.HFile;
import org.apache.hadoop.hbase.io.hfile.HFilePrettyPrinter;
import org.apache.hadoop.hbase.io.hfile.HFileScanner;

/**
 * HBase's own reader of HFiles, for tests. A line of stdin is a command and the path of a local file: `cells` answers
 * with each cell, in hex, `print` with what HFilePrettyPrinter has to say; `end` follows on a line of its own.
 */
public class ReadHFiles {
    private static final HexFormat HEX = HexFormat.of();

    public static void main(String[] arguments) throws Exception {
        Configuration conf = HBaseConfiguration.create();
        conf.set("fs.defaultFS", "file:///");
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        PrintStream out = new PrintStream(System.out, false, StandardCharsets.UTF_8);
        for (String line; (line = in.readLine()) != null; ) {
            String[] words = line.split(" ", 2);
            try {
                if (words[0].equals("cells")) {
                    cells(conf, words[1], out);
                } else {
                    HFilePrettyPrinter printer = new HFilePrettyPrinter(new Configuration(conf));  // it changes it
                    printer.setPrintStreams(out, out);
                    out.println("exit " + printer.run(new String[] {"-v", "-k", "-m", "-f", words[1]}));
                }
            } catch (Throwable error) {
                out.println("error: " + error);
            }
            out.println("end");
            out.flush();
        }
    }

    private static void cells(Configuration conf, String path, PrintStream out) throws Exception {
        HFileSystem files = new HFileSystem(conf, true);
        HFile.getAndResetChecksumFailuresCount();
        try (HFile.Reader reader = HFile.createReader(files, new Path(path), CacheConfig.DISABLED, true, conf)) {
            // Each block, index blocks too, before any is interpreted: a damaged one can crash the JVM.
            long end = reader.getTrailer().getLoadOnOpenDataOffset();
            for (long offset = 0; offset < end; ) {
                offset += reader.readBlock(offset, -1, false, false, false, false, null, null).getOnDiskSizeWithHeader();
            }
            // Where its checksums fail, HBase only says so, and believes those of the file system.
            if (HFile.getAndResetChecksumFailuresCount() > 0) {
                throw new IOException("a checksum failed");
            }
            HFileScanner scanner = reader.getScanner(conf, false, false);
            List<Cell> cells = new ArrayList<>();
            for (boolean more = scanner.seekTo(); more; more = scanner.next()) {
                Cell cell = scanner.getCell();
                cells.add(cell);
                out.println(String.join(",", "cell", HEX.formatHex(CellUtil.cloneRow(cell)),
                    HEX.formatHex(CellUtil.cloneFamily(cell)), HEX.formatHex(CellUtil.cloneQualifier(cell)),
                    Long.toString(cell.getTimestamp()), cell.getType().toString(),
                    HEX.formatHex(CellUtil.cloneValue(cell))));
            }
            for (Cell cell : cells) { // by the index now
                if (scanner.seekTo(cell) != 0 || !CellUtil.equals(scanner.getCell(), cell)) {
                    out.println("error: not found: " + cell);
                }
            }
        }
    }
}
