/*
Asks `mvaema serve` about the image that is open in Fiji, or about the rectangle drawn in it.

    1. Start the server:            mvaema serve
    2. Open a micrograph in Fiji, draw a rectangle if you like.
    3. File > Open... this file, and press Run. The answer is written to the log.

A copy in Fiji's folder plugins/Scripts/Plugins/ gets a menu entry of its own.

What is sent is what is seen: the pixels at the contrast set in Fiji, as a PNG without metadata, and
the length of a pixel where the image is calibrated (Analyze > Set Scale...). It goes to the server
that you name and nowhere else. A server with keys reads yours from the environment variable
MVAEMA_API_KEY.

Groovy comes with Fiji, and it can post over HTTP and write base64. The macro language of ImageJ can do
neither by itself.
*/

import ij.IJ
import ij.ImagePlus
import ij.gui.GenericDialog
import java.nio.charset.StandardCharsets
import javax.imageio.ImageIO

NANOMETRES = [nm: 1d, um: 1e3, "µm": 1e3, "μm": 1e3, micron: 1e3, microns: 1e3, mm: 1e6, cm: 1e7, m: 1e9,
              "Å": 0.1, A: 0.1, angstrom: 0.1, nanometer: 1d, micrometer: 1e3, millimeter: 1e6]

// The length of a square pixel, or null where the image is not calibrated in a length.
Double pixelSizeNm(ImagePlus image) {
    def calibration = image.calibration
    def unit = NANOMETRES[calibration.unit]
    def square = Math.abs(calibration.pixelWidth - calibration.pixelHeight) <= 0.01 * calibration.pixelHeight
    return unit != null && square ? calibration.pixelWidth * unit : null
}

String quoted(String text) {
    def plain = text.replace("\\", "\\\\").replace("\"", "\\\"")
    return "\"" + plain.collectReplacements { it < (" " as char) ? String.format("\\u%04x", (int) it) : null } + "\""
}

String requestBody(ImagePlus image, String question) {
    def bytes = new ByteArrayOutputStream()
    // Of a stack the shown slice, of an image with a rectangle its inside.
    ImageIO.write(image.crop().bufferedImage, "png", bytes)
    def uri = "data:image/png;base64," + Base64.encoder.encodeToString(bytes.toByteArray())
    def size = pixelSizeNm(image)
    return """{"messages": [{"role": "user", "content": [
        {"type": "text", "text": ${quoted(question)}},
        {"type": "image_url", "image_url": {"url": "${uri}"}}]}]""" +
        (size == null ? "}" : """, "pixel_size_nm": ${size}}""")
}

String post(String server, String body) {
    def connection = new URL(server + "/v1/chat/completions").openConnection() as HttpURLConnection
    connection.requestMethod = "POST"
    connection.doOutput = true
    connection.connectTimeout = 5000
    connection.readTimeout = 180000
    connection.setRequestProperty("Content-Type", "application/json")
    def key = System.getenv("MVAEMA_API_KEY")
    if (key) connection.setRequestProperty("Authorization", "Bearer " + key)
    connection.outputStream.withCloseable { it.write(body.getBytes(StandardCharsets.UTF_8)) }
    def stream = connection.responseCode == 200 ? connection.inputStream : connection.errorStream
    return stream == null ? "" : new String(stream.bytes, StandardCharsets.UTF_8)
}

// The text behind a name in the server's reply.
String textOf(String reply, String name) {
    def match = reply =~ /"${name}"\s*:\s*"((?:[^"\\]|\\.)*)"/
    if (!match.find()) return null
    return match.group(1).replaceAll(/\\(u[0-9a-fA-F]{4}|.)/) { whole, code ->
        if (code.startsWith("u")) return String.valueOf((char) Integer.parseInt(code.substring(1), 16))
        return [n: "\n", t: "\t", r: "\r", b: "\b", f: "\f"].getOrDefault(code, code)
    }
}

def image = IJ.getImage() // says so where none is open
def dialog = new GenericDialog("Ask MVaEMa")
dialog.addStringField("question", "How large are the structures?", 50)
dialog.addStringField("server", "http://127.0.0.1:8000", 50)
dialog.showDialog()
if (!dialog.wasCanceled()) {
    def question = dialog.nextString
    def server = dialog.nextString.replaceAll('/+$', "")
    try {
        def reply = post(server, requestBody(image, question))
        def answer = textOf(reply, "content")
        IJ.log(answer == null ? "No answer: " + (textOf(reply, "message") ?: reply) : question + "\n" + answer)
    } catch (IOException problem) {
        IJ.log("No answer from " + server + ". Is `mvaema serve` running there? " + problem.message)
    }
}
